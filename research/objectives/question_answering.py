"""Extractive question answering: where in a passage the answer begins and ends
(arXiv:1810.04805, sections 4.2 and 4.3)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.models.model import Model
from research.objectives.config import ObjectiveConfig, refuse_overlap
from research.objectives.labels import label_logits
from research.objectives.objective import Objective, Totals
from research.objectives.tokens import with_layer_losses
from research.ops.loss import cross_entropy
from research.parallel.placement import gather_axis
from research.tree import Tree

_NEVER = -1e9  # the score of padding; a finite one, of which no difference is NaN


@dataclass(frozen=True)
class QuestionAnsweringConfig(ObjectiveConfig):
    """`overlap`: tokens that two windows of a passage share that is longer than one."""

    name: str = field(default="question_answering", init=False)
    overlap: int = 32

    def __post_init__(self):
        refuse_overlap(self.overlap)


@dataclass(frozen=True)
class QuestionAnswering(Objective):
    """Predicts the first and the last token of the answer, each among all tokens of the row; both
    are the row's first where it holds no answer. Every row is a question and a passage, or a
    stretch of a long one."""

    overlap: int = 32

    name = "question_answering"
    config = QuestionAnsweringConfig
    model_kind = "encoder"
    reads = "questions"
    begins_texts = True
    answers_chats = False
    classifies = True
    labels_over = "spans"
    reports = ("accuracy",)
    bits_per_byte = False

    @classmethod
    def make(cls, config: QuestionAnsweringConfig, tokenizer: Any) -> "QuestionAnswering":
        """The objective with the settings of `config`; works with every tokenizer."""
        return cls(config.overlap)

    def window_length(self, sequence_length: int) -> int:
        """T tokens of question and passage together, with their marks."""
        return sequence_length

    def predicted_tokens(self, sequence_length: int) -> float:
        """0: places are predicted, and no token."""
        return 0.0

    def example(
        self, window: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """inputs, segments, positions and token_types, each [T]; targets, the places of the
        answer's first and last token, and weights, each [2]."""
        return {
            "inputs": window["tokens"],
            "segments": window["segments"],
            "positions": window["positions"],
            "token_types": window["token_types"],
            "targets": window["ends"],
            "weights": np.ones(2, np.float32),
        }

    def loss(
        self,
        model: Model,
        trainable: Tree,
        held: Mapping[str, Tree],
        batch: dict[str, jax.Array],
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Totals]:
        """(sum of the loss over both ends in nats, two for each row, totals): "nll", the same, and
        "accuracy", the rows of which both likeliest ends are right."""
        logits_BT2, layer_losses = label_logits(model, trainable, held, batch, key)
        # Every end is one of the T places, so all of a row's are needed together.
        logits_B2T = jnp.swapaxes(gather_axis(logits_BT2, axis=1), 1, 2)
        real_B1T = (gather_axis(batch["segments"], axis=1) > 0)[:, None, :]
        logits_B2T = jnp.where(real_B1T, logits_B2T, _NEVER)
        targets_B2, weights_B2 = (
            gather_axis(batch[name], axis=1) for name in ("targets", "weights")
        )
        nll_B2, _ = cross_entropy(logits_B2T, targets_B2)
        count = jnp.sum(weights_B2)
        total, totals = with_layer_losses(
            model.config, layer_losses, jnp.sum(nll_B2 * weights_B2), count
        )
        both_B = jnp.all(jnp.argmax(logits_B2T, axis=-1) == targets_B2, axis=-1)
        right = jnp.sum(both_B.astype(jnp.float32) * weights_B2[:, 0])
        nll = jnp.sum(nll_B2 * weights_B2)
        rows = jnp.sum(weights_B2[:, 0])
        return total, count, {"nll": (nll, count), "accuracy": (right, rows), **totals}
