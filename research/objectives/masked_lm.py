"""Masked language modelling (arXiv:1810.04805, section 3.1), by token or by whole word."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from research.devices.backend import platform
from research.models.model import Model
from research.objectives.config import TokenLossConfig, refuse_share
from research.objectives.objective import Objective, Totals
from research.objectives.predicted import Bound
from research.objectives.tokens import token_loss
from research.tree import Tree

SLACK = 16  # tokens by which the last word of a row seldom exceeds the share
ROWS = 8  # tokens in a tile of a TPU's registers


@dataclass(frozen=True)
class MaskedLMConfig(TokenLossConfig):
    """Settings of masked language modelling.

    share        fraction of the tokens of a text that are predicted; 0.15 in BERT
    whole_words  choose whole words instead of single tokens
    """

    name: str = field(default="masked_lm", init=False)
    share: float = 0.15
    whole_words: bool = False

    def __post_init__(self):
        super().__post_init__()
        refuse_share(self.share)


@dataclass(frozen=True)
class MaskedLM(Objective):
    """Predicts a random `share` of the tokens from both sides. Of these tokens the model sees a
    mask in 80%, a random token in 10% and the token itself in 10%.

    `word_starts` is a tuple of V booleans, true for tokens that begin a word. With it whole words
    are chosen: a token that begins no word is chosen with the token before it. Without it (None)
    tokens are chosen one by one.
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
        """The objective for this tokenizer. ValueError for one without a mask token."""
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
        """The tokens that are chosen on average, `share` of the length."""
        # Of a window full of text: specials and padding are never chosen and lower it.
        return self.share * sequence_length

    def example(
        self, window: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """inputs, targets, weights (1 where predicted), segments, positions, each [T]; specials are
        never chosen."""
        tokens = window["tokens"]
        chosen = self._choose(tokens, window["segments"], rng)
        # One draw in [0, 1) decides for each chosen token: below 0.8 mask, from 0.9 on a random
        # token, else unchanged. Not all are masked because later uses of the model see no masks
        # (section 3.1).
        action = rng.random(tokens.shape)
        # Drawn for all tokens, chosen or not: the number of these draws depends on T alone.
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
        """(sum of the loss over the chosen tokens in nats, their number, further totals)."""
        # On a CPU the head runs over all tokens: over fewer, its sums have other bits than before.
        bound = None if platform() == "cpu" else self.bound(batch["inputs"].shape[1])
        return token_loss(
            model, trainable, held, batch, key, self.label_smoothing, self.z_loss, bound
        )

    def bound(self, length: int) -> Bound:
        """How many tokens of a row of `length` are predicted at most, in whole tiles."""
        # `_choose` stops at the share, rounded up; only the last whole word may go beyond it.
        by_token = self.word_starts is None
        most = math.ceil(self.share * length) + (0 if by_token else SLACK)
        return Bound(min(length, most + -most % ROWS), hard=by_token)

    def _choose(
        self, tokens: np.ndarray, segments: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Bool [T], true for the tokens to predict: random words or tokens, taken until they make
        up the wanted share."""
        # Special tokens and padding are never predicted.
        open_to = (segments > 0) & ~np.isin(tokens, self.special_ids)
        if self.word_starts is None:
            unit = np.arange(len(tokens))
        else:
            # A word also ends at a special token and at the end of its document.
            new_word = np.asarray(self.word_starts)[tokens] | ~open_to
            new_word[1:] |= ~open_to[:-1] | (segments[1:] != segments[:-1])
            new_word[:1] = True
            unit = np.cumsum(new_word) - 1
        # Tokens that may be predicted in each unit: 0 for special tokens and padding.
        sizes = np.bincount(unit, weights=open_to)
        # A unit is taken while the units before it are short of the share, so the last word may
        # exceed it and a text of one word still has a target.
        order = rng.permutation(len(sizes))
        before = np.cumsum(sizes[order]) - sizes[order]
        picked = np.zeros(len(sizes), bool)
        # The share is of the tokens that may be predicted, so padding does not lower it.
        picked[order[before < self.share * open_to.sum()]] = True
        return picked[unit] & open_to
