"""On-policy distillation: a student learns a teacher's distribution on texts that the student has
written itself (GKD, arXiv:2306.13649), so that what it learns is where its own words lead."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax

from research.models.config import ModelConfig
from research.models.model import Model
from research.objectives.distillation import teacher_side
from research.objectives.divergence import Side, divergence_sums
from research.objectives.objective import REFERENCE, Totals
from research.objectives.tokens import with_layer_losses
from research.objectives.written import Written
from research.objectives.written_config import WrittenConfig
from research.tree import Tree
from research.weights.rules import TEACHER, attach


@dataclass(frozen=True)
class OnPolicyConfig(WrittenConfig):
    """How texts are sampled, see `WrittenConfig`, and what is learnt on them. Rewards only measure.

    teacher     checkpoint of the teacher, in any format, with the student's tokenizer; "" is the
                model itself before the first step
    divergence  0 is KL(teacher || student), 1 KL(student || teacher), and between them the
                generalized Jensen-Shannon divergence
    """

    name: str = field(default="on_policy_distillation", init=False)
    teacher: str = ""
    divergence: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.divergence <= 1:
            raise ValueError(f"objective.divergence={self.divergence} must lie in [0, 1]")


@dataclass(frozen=True)
class OnPolicyDistillation(Written):
    """Makes each next token's distribution that of the teacher, after what the student wrote.

    The loss is temperature^2 * divergence, whole distributions at each written token and not only
    the token that was drawn; no gradient goes through the drawing (arXiv:2306.13649, algorithm 1
    with lambda = 1). The totals are "kl", the divergence itself, and "nll", -log p of what was
    drawn at temperature 1, both in nats a written token. A text whose rewards are all none has no
    loss.
    """

    divergence: float = 0.0
    holds: tuple[str, ...] = (REFERENCE,)  # type: ignore[misc]  # by what the teacher is
    teacher: ModelConfig | None = None

    name = "on_policy_distillation"
    config: ClassVar[type[Any]] = OnPolicyConfig

    @classmethod
    def make(cls, config: OnPolicyConfig, tokenizer: Any) -> "OnPolicyDistillation":
        """The objective of the config; works with every tokenizer. The teacher's shape is set by
        `research.run.teacher`, which can open it."""
        return cls(
            max_tokens=config.max_tokens,
            rewards=config.rewards,
            temperature=config.temperature,
            divergence=config.divergence,
            holds=(TEACHER if config.teacher else REFERENCE,),
        )

    def loss(
        self,
        model: Model,
        trainable: Tree,
        held: Mapping[str, Tree],
        batch: dict[str, jax.Array],
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Totals]:
        """Sum of the loss in nats over the written tokens, their count, and the totals."""
        params = attach(held["base"], trainable, key)
        hidden_BTD, layer_losses = model.hidden(params, batch, key)
        sums = divergence_sums(
            Side(model, params, hidden_BTD),
            teacher_side(model, held, self.holds[0], self.teacher, batch),
            batch["targets"],
            batch["weights"],
            self.divergence,
            self.temperature,
        )
        count = batch["weights"].sum()
        total = self.temperature**2 * sums.divergence
        total, totals = with_layer_losses(model.config, layer_losses, total, count)
        own = {"kl": (sums.divergence, count), "nll": (sums.nll, count)}
        return total, count, {**jax.lax.stop_gradient(own), **totals}
