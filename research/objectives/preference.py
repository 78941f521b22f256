"""Preference tuning on pairs of answers: DPO and its family."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from research.data.mixture import first_windows
from research.data.preference_windows import most_pairs
from research.data.windows import Windows
from research.models.model import Model
from research.objectives.chat import Chat
from research.objectives.config import ObjectiveConfig, refuse_smoothing
from research.objectives.next_token import NextToken, batch_scores
from research.objectives.objective import REFERENCE, Totals
from research.objectives.preference_losses import (
    LOSSES,
    PreferenceSettings,
    Said,
    preference_loss,
    rewards,
)
from research.objectives.reference import (
    CACHED,
    HELD,
    read_reference,
    reference_scores,
    refuse_kind,
)
from research.objectives.sides import side_sums
from research.objectives.tokens import with_layer_losses
from research.parallel.placement import gather_axis
from research.tree import Tree
from research.weights.rules import attach


@dataclass(frozen=True)
class PreferenceConfig(ObjectiveConfig):
    """Settings of preference tuning.

    preference_loss  a row of `research.objectives.preference_losses.LOSSES`
    beta             how much a log-probability ratio counts; larger stays nearer the reference
    label_smoothing  share of the pairs taken to be labelled the wrong way round
    gamma            the margin that SimPO wants
    reference        "held": the reference is a frozen tree and runs beside the model; "cached": its
                     log-probabilities are computed once, before the first step
    """

    name: str = field(default="preference", init=False)
    preference_loss: str = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    gamma: float = 0.5
    reference: str = HELD

    def __post_init__(self):
        if self.preference_loss not in LOSSES:
            raise ValueError(
                f"objective.preference_loss={self.preference_loss!r}; choose one of "
                f"{', '.join(LOSSES)}"
            )
        refuse_smoothing(self.label_smoothing)
        row = LOSSES[self.preference_loss]
        refuse_kind(self.reference, self.preference_loss, row.reference)
        if self.label_smoothing and not row.smoothed:
            raise ValueError(
                f"objective.label_smoothing={self.label_smoothing} is set and "
                f"{self.preference_loss} does not use it; leave it at 0.0"
            )
        if self.preference_loss == "robust" and self.label_smoothing >= 0.5:
            raise ValueError(
                f"objective.label_smoothing={self.label_smoothing} must be under 0.5 for robust: "
                "of labels that are wrong half of the time nothing can be learnt"
            )
        if self.gamma != type(self).gamma and self.preference_loss != "simpo":
            raise ValueError(
                f"objective.gamma={self.gamma} is set and {self.preference_loss} does not use it; "
                f"leave it at {type(self).gamma}"
            )
        # Written so that NaN, which compares with nothing, is refused too.
        if not 0 < self.beta < math.inf:
            raise ValueError(f"objective.beta={self.beta} must be a number above 0")
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"objective.gamma={self.gamma} must be a number of at least 0")


@dataclass(frozen=True)
class Preference(NextToken):
    """Makes the chosen answer of a pair likelier than the rejected one, measured against the model
    as it was before the first step (arXiv:2305.18290), or by itself where the loss has no
    reference.

    The loss is a mean over pairs. The totals are means over pairs, too: "margin" of the rewards
    beta (log p - log p_ref), in which the reference is 0 where there is none, "accuracy", the share
    of pairs whose margin is above 0, and "chosen" and "rejected", the rewards.
    """

    loss_name: str = "sigmoid"
    settings: PreferenceSettings = PreferenceSettings()
    holds: tuple[str, ...] = (REFERENCE,)  # type: ignore[misc]  # held where it is used
    reads_reference: bool = False  # type: ignore[misc]  # read where it is cached
    whole_batch: bool = False  # type: ignore[misc]  # of the losses that compare pairs

    name = "preference"
    config: ClassVar[type[PreferenceConfig]] = PreferenceConfig
    reads = "preferences"
    overlap = 0  # windows hold whole pairs
    answers_chats = True
    reports = ("margin", "accuracy")
    bits_per_byte = False

    @classmethod
    def make(cls, config: PreferenceConfig, tokenizer: Any) -> "Preference":
        """The objective of the config's loss; works with every tokenizer that has a template."""
        settings = PreferenceSettings(config.beta, config.label_smoothing, config.gamma)
        row, cached = LOSSES[config.preference_loss], config.reference == CACHED
        held = (REFERENCE,) if row.reference and not cached else ()
        return cls(config.preference_loss, settings, held, cached, row.batch)

    def example(
        self, window: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """inputs, targets, weights (1 in the answers), segments (1, 3, ... with the chosen answers,
        2, 4, ... with the rejected ones), positions, and of a cached reference log p of the
        targets, each [T]."""
        example = Chat().example(window, rng)
        return example | read_reference(window) if self.reads_reference else example

    def shortfalls(self, windows: Windows) -> list[str]:
        """A line where the records say how much better an answer is, which is not read here."""
        if any("margins" in window for window in first_windows(windows, 1)):
            return ["the records have margins, which objective reward reads and this one does not"]
        return []

    def loss(
        self,
        model: Model,
        trainable: Tree,
        held: Mapping[str, Tree],
        batch: dict[str, jax.Array],
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Totals]:
        """Sum of the losses of the pairs in nats, their number, the totals of the class."""
        row = LOSSES[self.loss_name]
        params = attach(held["base"], trainable, key)
        scores, layer_losses = batch_scores(model, params, batch, key)
        beside_BT = jnp.zeros_like(scores.logp)
        if row.reference:
            beside_BT = reference_scores(model, held, batch, self.reads_reference)
        said = answers(scores.logp, beside_BT, batch)
        if row.batch:  # pairs of all devices are compared with each other
            said = Said(*(gather_axis(x_BP, axis=0).reshape(-1) for x_BP in said))
        losses = preference_loss(self.loss_name, said, self.settings)
        if row.likely:
            losses -= said.chosen / jnp.maximum(said.chosen_tokens, 1)
        count = jnp.sum(said.weights)
        total, totals = with_layer_losses(
            model.config, layer_losses, jnp.sum(losses * said.weights), count
        )
        chosen, rejected = rewards(said, self.settings.beta)
        means = {"chosen": chosen, "rejected": rejected, "margin": chosen - rejected}
        means["accuracy"] = (chosen > rejected).astype(jnp.float32)
        sums = {name: (jnp.sum(x * said.weights), count) for name, x in means.items()}
        return total, count, {**jax.lax.stop_gradient(sums), **totals}


def answers(logp_BT: jax.Array, reference_BT: jax.Array, batch: dict[str, jax.Array]) -> Said:
    """What is said of the answers of a batch, each [B, P]: P is the most pairs that a row of its
    length may have, and those that it has not got weigh 0."""
    # Of a window the last token is a target only.
    pairs = most_pairs(batch["segments"].shape[1] + 1)
    chosen, rejected = side_sums(logp_BT, batch, pairs)
    reference_chosen, reference_rejected = side_sums(reference_BT, batch, pairs)
    chosen_tokens, rejected_tokens = side_sums(jnp.ones_like(logp_BT), batch, pairs)
    weights = ((chosen_tokens > 0) & (rejected_tokens > 0)).astype(jnp.float32)
    return Said(
        chosen,
        rejected,
        reference_chosen,
        reference_rejected,
        chosen_tokens,
        rejected_tokens,
        weights,
    )
