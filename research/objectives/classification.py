"""Classification of whole texts (arXiv:1810.04805, section 4.1)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from research.models.model import Model
from research.objectives.config import ObjectiveConfig, refuse_smoothing
from research.objectives.labels import class_loss
from research.objectives.objective import Objective, Totals
from research.tree import Tree


@dataclass(frozen=True)
class ClassificationConfig(ObjectiveConfig):
    """`label_smoothing`: share of the target's probability that goes to all classes alike."""

    name: str = field(default="classification", init=False)
    label_smoothing: float = 0.0

    def __post_init__(self):
        refuse_smoothing(self.label_smoothing)


@dataclass(frozen=True)
class Classification(Objective):
    """Predicts the class of a text from its pooled state, such as that of its first token. Every
    row is one text; texts are not packed, since a row has one class."""

    label_smoothing: float = 0.0

    name = "classification"
    config = ClassificationConfig
    model_kind = "encoder"
    # The class attributes describe the objective to data, model and evaluation, which read them
    # and never ask for its name.
    reads = "labels"
    overlap = 0  # every row is a text of its own
    begins_texts = True
    answers_chats = False
    classifies = True
    reports = ("accuracy",)
    bits_per_byte = False  # the loss is on classes, not on the bytes of a text

    @classmethod
    def make(cls, config: ClassificationConfig, tokenizer: Any) -> "Classification":
        """The objective with the label smoothing of `config`; works with every tokenizer."""
        return cls(config.label_smoothing)

    def window_length(self, sequence_length: int) -> int:
        """T tokens, the first and the last of them special."""
        return sequence_length

    def predicted_tokens(self, sequence_length: int) -> float:
        """0: no token is predicted, the class is read from the pooled text."""
        return 0.0

    def example(
        self, window: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """inputs, segments, positions, each [T]; targets, the class, and weights, each [1]."""
        # T inputs and one target a row: the fields of a batch may differ in length.
        inputs = {
            "inputs": window["tokens"],
            "segments": window["segments"],
            "positions": window["positions"],
        }
        return inputs | {"targets": window["label"], "weights": np.ones(1, np.float32)}

    def loss(
        self,
        model: Model,
        trainable: Tree,
        held: Mapping[str, Tree],
        batch: dict[str, jax.Array],
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Totals]:
        """`labels.class_loss` over texts."""
        return class_loss(model, trainable, held, batch, key, self.label_smoothing)
