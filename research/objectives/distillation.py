"""Knowledge distillation: a student learns a teacher's distribution of every next token
(arXiv:1503.02531), by forward or reverse KL or between the two (GKD, arXiv:2306.13649)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax

from research.models.config import ModelConfig
from research.models.model import Model
from research.objectives.causal_lm import CausalLM
from research.objectives.config import ObjectiveConfig
from research.objectives.divergence import Side, divergence_sums
from research.objectives.objective import REFERENCE, Totals
from research.objectives.tokens import with_layer_losses
from research.tree import Tree
from research.weights.formats import FORMATS
from research.weights.matrices import LINEAR
from research.weights.rules import TEACHER, attach
from research.weights.straight_through import straight_through


@dataclass(frozen=True)
class DistillationConfig(ObjectiveConfig):
    """Settings of distillation.

    teacher         checkpoint of the teacher, in any format, with the student's tokenizer; "" is
                    the model itself before the first step
    divergence      0 is KL(teacher || student), 1 KL(student || teacher), and between them the
                    generalized Jensen-Shannon divergence
    temperature     divides the logits of both; the divergence is multiplied by its square, so that
                    gradients keep their size (arXiv:1503.02531, section 2)
    teacher_weight  weight of the divergence; the rest is that of -log p(token) of the data
    rounding        format of research/weights/formats.py that the student's matrices are rounded
                    to in every step, with gradients straight through (quantization-aware
                    distillation, arXiv:2601.20088); "" trains it as it is
    rounding_group  values that share a scale; 0 takes the format's own number
    """

    name: str = field(default="distillation", init=False)
    teacher: str = ""
    divergence: float = 0.0
    temperature: float = 1.0
    teacher_weight: float = 0.5
    rounding: str = ""
    rounding_group: int = 0

    def __post_init__(self):
        for name in ("divergence", "teacher_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"objective.{name}={getattr(self, name)} must lie in [0, 1]")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"objective.temperature={self.temperature} must be above 0")
        if self.rounding and self.rounding not in FORMATS:
            raise ValueError(
                f"objective.rounding={self.rounding!r}; choose one of {', '.join(FORMATS)}"
            )
        if self.rounding_group < 0:
            raise ValueError(f"objective.rounding_group={self.rounding_group} must not be negative")
        if self.rounding_group and not self.rounding:
            raise ValueError(
                f"objective.rounding_group={self.rounding_group} is set and nothing is rounded; "
                "set config.objective.rounding or leave it out"
            )
        if not self.teacher_weight and (self.teacher or self.divergence or self.temperature != 1):
            raise ValueError(
                "objective.teacher_weight=0 uses no teacher; leave objective.teacher, divergence "
                "and temperature out"
            )


@dataclass(frozen=True)
class Distillation(CausalLM):
    """Makes each next token's distribution that of the teacher, on the windows of causal language
    modelling.

    The loss is teacher_weight * temperature^2 * divergence + (1 - teacher_weight) * nll. The totals
    are "nll", and "kl", the divergence itself, both in nats over the same tokens. `teacher` is the
    teacher's shape where it is another checkpoint. Where no teacher is held, as when a finished run
    is evaluated, the loss is the "nll" alone.
    """

    settings: DistillationConfig = DistillationConfig()
    holds: tuple[str, ...] = (REFERENCE,)  # type: ignore[misc]  # by what the teacher is
    teacher: ModelConfig | None = None

    name = "distillation"
    config: ClassVar[type[Any]] = DistillationConfig
    reports = ("kl",)

    @classmethod
    def make(cls, config: Any, tokenizer: Any) -> "Distillation":
        """The objective of the config; works with every tokenizer. The teacher's shape is set by
        `research.run.teacher`, which can open it."""
        held = (TEACHER if config.teacher else REFERENCE,) if config.teacher_weight else ()
        return cls(settings=config, holds=held)

    def loss(
        self,
        model: Model,
        trainable: Tree,
        held: Mapping[str, Tree],
        batch: dict[str, jax.Array],
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Totals]:
        """Sum of the loss in nats over the tokens that count, their count, and the totals."""
        if not self.holds or self.holds[0] not in held:
            params = self._rounded(model, attach(held["base"], trainable, key))
            return super().loss(model, params, {"base": {}}, batch, key)
        s = self.settings
        params = self._rounded(model, attach(held["base"], trainable, key))
        hidden_BTD, layer_losses = model.hidden(params, batch, key)
        teacher = teacher_side(model, held, self.holds[0], self.teacher, batch)
        student = Side(model, params, hidden_BTD)
        targets_BT, weights_BT = batch["targets"], batch["weights"]
        sums = divergence_sums(
            student, teacher, targets_BT, weights_BT, s.divergence, s.temperature
        )
        count = weights_BT.sum()
        total = s.teacher_weight * s.temperature**2 * sums.divergence
        total += (1 - s.teacher_weight) * sums.nll
        total, totals = with_layer_losses(model.config, layer_losses, total, count)
        own = {"nll": (sums.nll, count), "kl": (sums.divergence, count)}
        return total, count, {**jax.lax.stop_gradient(own), **totals}

    def _rounded(self, model: Model, params: Tree) -> Tree:
        s = self.settings
        if not s.rounding:
            return params
        rules = [(LINEAR, s.rounding), (".*", None)]
        return straight_through(params, model.specs(), rules, s.rounding_group or None)


def teacher_side(
    model: Model,
    held: Mapping[str, Tree],
    name: str,
    config: ModelConfig | None,
    batch: dict[str, jax.Array],
) -> Side:
    """The teacher, the tree `held[name]`, after its last layer, without dropout and without a
    gradient. `config` is its shape where it is another checkpoint than the student's start."""
    params = jax.lax.stop_gradient(held[name])
    if config is None:
        params = attach(held["base"], params)
    else:
        model = replace(model, config=config)
    hidden_BTD = model.hidden(params, batch)[0]
    return Side(model, params, jax.lax.stop_gradient(hidden_BTD))
