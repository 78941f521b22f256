"""Masked language modelling (arXiv:1810.04805, section 3.1), by token or by whole word."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from research.models.model import Model
from research.objectives.tokens import Totals, token_loss
from research.tree import Tree


@dataclass(frozen=True)
class MaskedLM:
    """A share of the tokens is to be predicted: 80% of these are masked, 10% replaced at random,
    10% left.

    `word_starts` [V], where given, makes the choice by whole words: a token that begins no word
    goes with the one before.
    """

    mask_id: int
    vocab_size: int
    special_ids: tuple[int, ...] = ()
    share: float = 0.15
    word_starts: tuple[bool, ...] | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    kind = "encoder"
    overlap = 0

    def window_length(self, sequence_length: int) -> int:
        """T tokens."""
        return sequence_length

    def example(
        self, window: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """inputs, targets, weights (1 where predicted), segments, positions, each [T]; specials are
        never chosen."""
        tokens = window["tokens"]
        chosen = self._choose(tokens, window["segments"], rng)
        action = rng.random(tokens.shape)
        words = rng.integers(0, self.vocab_size, tokens.shape, dtype=np.int32)
        inputs = np.where(chosen & (action < 0.8), self.mask_id, tokens)
        inputs = np.where(chosen & (action >= 0.9), words, inputs)
        return {
            "inputs": inputs.astype(np.int32),
            "targets": tokens,
            "weights": chosen.astype(np.float32),
            "segments": window["segments"],
            "positions": window["positions"],
        }

    def loss(
        self,
        model: Model,
        trainable: Tree,
        held: Mapping[str, Tree],
        batch: dict[str, jax.Array],
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Totals]:
        """Sum of nats over the chosen tokens, their count, further totals."""
        return token_loss(model, trainable, held, batch, key, self.label_smoothing, self.z_loss)

    def _choose(
        self, tokens: np.ndarray, segments: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Units (tokens or words) in random order until their tokens are the wanted share."""
        open_to = (segments > 0) & ~np.isin(tokens, self.special_ids)
        if self.word_starts is None:
            unit = np.arange(len(tokens))
        else:
            new_word = np.asarray(self.word_starts)[tokens] | ~open_to
            new_word[1:] |= ~open_to[:-1] | (segments[1:] != segments[:-1])
            new_word[:1] = True
            unit = np.cumsum(new_word) - 1
        sizes = np.bincount(unit, weights=open_to)
        order = rng.permutation(len(sizes))
        before = np.cumsum(sizes[order]) - sizes[order]
        picked = np.zeros(len(sizes), bool)
        picked[order[before < self.share * open_to.sum()]] = True
        return picked[unit] & open_to
