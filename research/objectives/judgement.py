"""Preference tuning on single answers that were liked or not: KTO."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from research.models.model import Model
from research.objectives.chat import Chat
from research.objectives.config import ObjectiveConfig
from research.objectives.next_token import NextToken, batch_scores
from research.objectives.objective import REFERENCE, Totals
from research.objectives.preference import answers
from research.objectives.preference_losses import UNPAIRED, Judged
from research.objectives.reference import (
    CACHED,
    HELD,
    read_reference,
    reference_scores,
    refuse_kind,
)
from research.objectives.sides import side_sums
from research.objectives.tokens import with_layer_losses
from research.tree import Tree
from research.weights.rules import attach


@dataclass(frozen=True)
class JudgementConfig(ObjectiveConfig):
    """Settings of tuning on judgements.

    unpaired_loss  kto (arXiv:2402.01306) or apo_zero_unpaired (arXiv:2408.06266)
    beta           how much a log-probability ratio counts; larger stays nearer the reference
    liked          what a liked answer weighs, and
    disliked       one that was not liked; KTO's paper wants their sums near each other
    reference      "held" or "cached", as of preferences
    """

    name: str = field(default="judgement", init=False)
    unpaired_loss: str = "kto"
    beta: float = 0.1
    liked: float = 1.0
    disliked: float = 1.0
    reference: str = HELD

    def __post_init__(self):
        if self.unpaired_loss not in UNPAIRED:
            raise ValueError(
                f"objective.unpaired_loss={self.unpaired_loss!r}; choose one of "
                f"{', '.join(UNPAIRED)}"
            )
        refuse_kind(self.reference, self.unpaired_loss, True)
        for name in ("beta", "liked", "disliked"):
            value = getattr(self, name)
            # Written so that NaN, which compares with nothing, is refused too.
            if not 0 < value < math.inf:
                raise ValueError(f"objective.{name}={value} must be a number above 0")


@dataclass(frozen=True)
class Judgement(NextToken):
    """Makes liked answers likelier and others less likely, measured against the model as it was
    before the first step.

    The loss is a mean over answers. KTO measures them from what the answers to other prompts have
    gained on the average over the batch. The totals are means over answers: "margin", the reward
    beta (log p - log p_ref) of liked answers and minus that of the others, "accuracy", the share of
    answers of which that is above 0, and "kl", what answers to other prompts have gained in nats.
    """

    loss_name: str = "kto"
    beta: float = 0.1
    liked: float = 1.0
    disliked: float = 1.0
    holds: tuple[str, ...] = (REFERENCE,)  # type: ignore[misc]  # held unless it is cached
    reads_reference: bool = False  # type: ignore[misc]  # read where it is cached
    whole_batch: bool = True  # type: ignore[misc]  # of KTO, which takes an average over it

    name = "judgement"
    config: ClassVar[type[JudgementConfig]] = JudgementConfig
    reads = "judgements"
    overlap = 0  # windows hold whole answers
    answers_chats = True
    reports = ("margin", "accuracy", "kl")
    bits_per_byte = False

    @classmethod
    def make(cls, config: JudgementConfig, tokenizer: Any) -> "Judgement":
        """The objective of the config's loss; works with every tokenizer that has a template."""
        cached = config.reference == CACHED
        held = () if cached else (REFERENCE,)
        weights = config.liked, config.disliked
        averages = config.unpaired_loss == "kto"
        return cls(config.unpaired_loss, config.beta, *weights, held, cached, averages)

    def example(
        self, window: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """inputs, targets, weights (1 in the answers), segments (1, 3, ... with the answers, 2, 4,
        ... with answers to other prompts), positions, advantages (1 or -1), and of a cached
        reference log p of the targets, each [T]."""
        example = Chat().example(window, rng)
        example["advantages"] = window["liked"][1:].astype(np.float32)
        return example | read_reference(window) if self.reads_reference else example

    def loss(
        self,
        model: Model,
        trainable: Tree,
        held: Mapping[str, Tree],
        batch: dict[str, jax.Array],
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Totals]:
        """Sum of the losses of the answers, their number, the totals of the class."""
        params = attach(held["base"], trainable, key)
        scores, layer_losses = batch_scores(model, params, batch, key)
        beside_BT = reference_scores(model, held, batch, self.reads_reference)
        gained = answers(scores.logp - beside_BT, jnp.zeros_like(beside_BT), batch)
        liked_BP = side_sums(batch["advantages"], batch, gained.chosen.shape[1])[0] > 0
        judged = Judged(gained.chosen, gained.rejected, liked_BP, gained.weights)
        losses = UNPAIRED[self.loss_name](judged, self.beta)
        losses *= jnp.where(liked_BP, self.liked, self.disliked)
        count = jnp.sum(judged.weights)
        total, totals = with_layer_losses(
            model.config, layer_losses, jnp.sum(losses * judged.weights), count
        )
        margin = self.beta * jnp.where(liked_BP, judged.answer, -judged.answer)
        right = (margin > 0).astype(jnp.float32)
        means = {"margin": margin, "accuracy": right, "kl": judged.other}
        sums = {name: (jnp.sum(x * judged.weights), count) for name, x in means.items()}
        return total, count, {**jax.lax.stop_gradient(sums), **totals}
