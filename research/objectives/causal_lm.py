"""Causal language modelling: predict the next token."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import numpy as np

from research.models.model import Model
from research.objectives.config import TokenLossConfig
from research.objectives.objective import Objective, Totals
from research.objectives.tokens import token_loss
from research.tree import Tree


@dataclass(frozen=True)
class CausalLMConfig(TokenLossConfig):
    """No settings beside those of the loss."""

    name: str = field(default="causal_lm", init=False)


@dataclass(frozen=True)
class CausalLM(Objective):
    """Each token of a packed window but the first is predicted from those before it in its own
    document."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    name = "causal_lm"
    config: ClassVar[type[TokenLossConfig]] = CausalLMConfig
    model_kind = "decoder"
    reads = "texts"
    overlap = 1  # the last target of a window is the first input of the next
    begins_texts = True
    answers_chats = False
    classifies = False
    reports = ()
    bits_per_byte = True

    @classmethod
    def make(cls, config: TokenLossConfig, tokenizer: Any) -> "CausalLM":
        """Nothing is asked of the tokenizer."""
        return cls(config.label_smoothing, config.z_loss)

    def window_length(self, sequence_length: int) -> int:
        """T + 1 tokens: the last is a target only."""
        return sequence_length + 1

    def predicted_tokens(self, sequence_length: int) -> float:
        """All of them."""
        return float(sequence_length)

    def example(
        self, window: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """inputs, targets, weights, segments, positions, each [T]; a document's first token is not
        predicted."""
        tokens, segments = window["tokens"], window["segments"]
        same = (segments[1:] == segments[:-1]) & (segments[1:] > 0)
        return {
            "inputs": tokens[:-1],
            "targets": tokens[1:],
            "weights": same.astype(np.float32),
            "segments": segments[:-1],
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
