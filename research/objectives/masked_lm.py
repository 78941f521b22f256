"""Masked language modelling (arXiv:1810.04805, section 3.1), by token or by whole word."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from research.models.model import Model
from research.objectives.config import TokenLossConfig, refuse_share
from research.objectives.objective import Objective, Totals
from research.objectives.tokens import token_loss
from research.tree import Tree


@dataclass(frozen=True)
class MaskedLMConfig(TokenLossConfig):
    """`share` of the tokens is to be predicted, chosen token by token, or by `whole_words`."""

    name: str = field(default="masked_lm", init=False)
    share: float = 0.15
    whole_words: bool = False

    def __post_init__(self):
        super().__post_init__()
        refuse_share(self.share)


@dataclass(frozen=True)
class MaskedLM(Objective):
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

    name = "masked_lm"
    config = MaskedLMConfig
    model_kind = "encoder"
    reads = "texts"
    overlap = 0
    begins_texts = True
    answers_chats = False
    classifies = False
    reports = ()
    bits_per_byte = False  # the loss is on a share of the tokens

    @classmethod
    def make(cls, config: MaskedLMConfig, tokenizer: Any) -> "MaskedLM":
        """ValueError for a tokenizer without a mask token."""
        if tokenizer.mask_id is None:
            raise ValueError(
                "objective masked_lm needs a tokenizer with a mask token, such as bpe:8192"
            )
        special = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.mask_id)
        return cls(
            mask_id=tokenizer.mask_id,
            vocab_size=tokenizer.vocab_size,
            special_ids=tuple(i for i in (*special, *tokenizer.sentinel_ids) if i is not None),
            share=config.share,
            word_starts=tuple(map(bool, tokenizer.word_starts)) if config.whole_words else None,
            label_smoothing=config.label_smoothing,
            z_loss=config.z_loss,
        )

    def window_length(self, sequence_length: int) -> int:
        """T tokens."""
        return sequence_length

    def predicted_tokens(self, sequence_length: int) -> float:
        """The share that is chosen."""
        return self.share * sequence_length

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
