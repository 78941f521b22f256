"""Causal language modelling: predict the next token."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from research.models.model import Model
from research.objectives.tokens import Totals, token_loss
from research.tree import Tree


@dataclass(frozen=True)
class CausalLM:
    """Each token of a packed window but the first is predicted from those before it in its own
    document."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    kind = "decoder"
    overlap = 1

    def window_length(self, sequence_length: int) -> int:
        """T + 1 tokens: the last is a target only."""
        return sequence_length + 1

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
        """Sum of nats, token count, further totals."""
        return token_loss(model, trainable, held, batch, key, self.label_smoothing, self.z_loss)
