"""Classification of a text's words, such as the names in it (arXiv:1810.04805, section 5.3)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from research.models.model import Model
from research.objectives.config import ObjectiveConfig, refuse_overlap, refuse_smoothing
from research.objectives.labels import class_loss
from research.objectives.objective import Objective, Totals
from research.tree import Tree


@dataclass(frozen=True)
class TokenClassificationConfig(ObjectiveConfig):
    """`label_smoothing`: share of the target's probability that goes to all classes alike.
    `overlap`: tokens that two windows of a text share that is longer than one."""

    name: str = field(default="token_classification", init=False)
    label_smoothing: float = 0.0
    overlap: int = 32

    def __post_init__(self):
        refuse_smoothing(self.label_smoothing)
        refuse_overlap(self.overlap)


@dataclass(frozen=True)
class TokenClassification(Objective):
    """Predicts the class of each word from the state of its first token. Every row is one text, or
    a stretch of a long one."""

    label_smoothing: float = 0.0
    overlap: int = 32

    name = "token_classification"
    config = TokenClassificationConfig
    model_kind = "encoder"
    reads = "tags"
    begins_texts = True
    answers_chats = False
    classifies = True
    labels_over = "tokens"
    reports = ("accuracy",)
    bits_per_byte = False

    @classmethod
    def make(cls, config: TokenClassificationConfig, tokenizer: Any) -> "TokenClassification":
        """The objective with the settings of `config`; works with every tokenizer."""
        return cls(config.label_smoothing, config.overlap)

    def window_length(self, sequence_length: int) -> int:
        """T tokens, the first and the last of them special."""
        return sequence_length

    def predicted_tokens(self, sequence_length: int) -> float:
        """0: classes are predicted, and no token."""
        return 0.0

    def example(
        self, window: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """inputs, segments, positions, targets and weights, each [T]; weights are 1 at the first
        token of a word."""
        return {
            "inputs": window["tokens"],
            "segments": window["segments"],
            "positions": window["positions"],
            "targets": window["labels"],
            "weights": window["labelled"].astype(np.float32),
        }

    def loss(
        self,
        model: Model,
        trainable: Tree,
        held: Mapping[str, Tree],
        batch: dict[str, jax.Array],
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Totals]:
        """`labels.class_loss` over words."""
        return class_loss(model, trainable, held, batch, key, self.label_smoothing)
