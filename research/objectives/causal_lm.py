"""Causal language modelling: predict the next token."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import numpy as np

from research.models.model import Model
from research.objectives.config import TokenLossConfig
from research.objectives.next_token import NextToken
from research.objectives.objective import Totals
from research.objectives.tokens import token_loss
from research.tree import Tree


@dataclass(frozen=True)
class CausalLMConfig(TokenLossConfig):
    """The settings of the loss over tokens; causal language modelling has none of its own."""

    name: str = field(default="causal_lm", init=False)


@dataclass(frozen=True)
class CausalLM(NextToken):
    """Predicts each token of a packed window from the earlier tokens of its own document.

    The first token of a document has nothing before it and is not predicted. The total "nll" is the
    sum of -log p(token) in nats, from which perplexity and bits per byte are computed; label
    smoothing and z-loss are in the loss alone.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    name = "causal_lm"
    config: ClassVar[type[TokenLossConfig]] = CausalLMConfig
    reads = "texts"
    overlap = 1  # the last target of a window is the first input of the next
    answers_chats = False
    reports = ()
    # Every token of a text is a target, so their sum is the information of the whole text.
    bits_per_byte = True

    @classmethod
    def make(cls, config: TokenLossConfig, tokenizer: Any) -> "CausalLM":
        """The objective with the loss settings of `config`; works with every tokenizer."""
        return cls(config.label_smoothing, config.z_loss)

    def example(
        self, window: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """inputs, targets, weights, segments, positions, each [T]; a document's first token is not
        predicted."""
        # A window has T + 1 tokens: inputs are the first T, targets the last T.
        tokens, segments = window["tokens"], window["segments"]
        # Where the segment changes, the target is the first token of another document, which the
        # document before it says nothing about; segment 0 is padding.
        same = (segments[1:] == segments[:-1]) & (segments[1:] > 0)
        return {
            "inputs": tokens[:-1],
            "targets": tokens[1:],
            "weights": same.astype(np.float32),
            "segments": segments[:-1],
            # Of the inputs: segments and positions say what a query is, not what it predicts.
            "positions": window["positions"][:-1],
        }

    def loss(
        self,
        model: Model,
        trainable: Tree,
        held: Mapping[str, Tree],
        batch: dict[str, jax.Array],
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Totals]:
        """Sum of nats over the tokens that count, their count, and the pair "nll"."""
        return token_loss(model, trainable, held, batch, key, self.label_smoothing, self.z_loss)
