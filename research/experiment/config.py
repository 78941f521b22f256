"""From a ConfigDict to frozen dataclasses. This is the only file that sees a ConfigDict.

A config file starts from `base_config()`, which has every field there is with its default, and
changes what differs. A misspelt field fails and names the nearest; every field either changes the
program or is refused.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from ml_collections import ConfigDict

from research.data.corpus import DataConfig
from research.experiment.fields import build, defaults, flatten, placeholders
from research.models.config import Execution, ModelConfig
from research.objectives.choose import ObjectiveConfig
from research.parallel.axes import merge_rules
from research.parallel.mesh import parse_mesh
from research.precision import Precision
from research.training.checkpoint import CheckpointConfig
from research.training.optimizer import OptimizerConfig
from research.tuning.lora_specs import LoraConfig
from research.tuning.method import QuantizeConfig, TuneConfig, refuse_unused


@dataclass(frozen=True)
class TrainConfig:
    """How long, and how often it reports. Intervals are in steps; 0 is never."""

    steps: int = 1000
    seed: int = 0
    accumulate: int = 1  # micro-batches of a step
    log_every: int = 10
    eval_every: int = 0
    eval_batches: int = (
        0  # of each evaluation but the last, which takes all; 0 takes all every time
    )
    sample_every: int = 0
    sample_prompt: str = ""
    sample_tokens: int = 128

    def __post_init__(self):
        for name in ("steps", "accumulate", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)} must be positive")
        for name in ("seed", "eval_every", "eval_batches", "sample_every", "sample_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name}={getattr(self, name)} must not be negative")


@dataclass(frozen=True)
class LoggingConfig:
    """Where metrics go beside the run directory."""

    wandb: bool = False


@dataclass(frozen=True)
class Experiment:
    """A whole run, resolved. `axes` overrides `research.parallel.axes.RULES`.

    `init` is the checkpoint whose parameters are the start, as
    `research.interop.load.open_checkpoint` takes it.
    """

    model: ModelConfig
    tune: TuneConfig
    lora: LoraConfig
    quantize: QuantizeConfig
    execution: Execution
    precision: Precision
    objective: ObjectiveConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    logging: LoggingConfig
    init: str = ""
    mesh: str = ""
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self):
        parse_mesh(self.mesh)
        refuse_unused(self.tune, self.lora, self.quantize)
        merge_rules(self.axes)
        wanted, name = self.objective.trains, self.objective.name
        if self.model.kind != wanted:
            raise ValueError(
                f"objective {name} is for a model of kind {wanted!r}, this one is {self.model.kind!r}"
            )
        if (self.model.labels > 1) != (name == "classification") or self.model.labels == 1:
            raise ValueError(
                f"model.labels={self.model.labels} under objective {name}: set config.model.labels to the number of classes "
                "for classification, and to 0 otherwise"
            )
        if self.model.position == "learned" and self.data.sequence_length > self.model.max_length:
            raise ValueError(
                f"data.sequence_length={self.data.sequence_length} is over the {self.model.max_length} learned "
                "positions; set config.model.max_length"
            )

    @property
    def changes_base(self) -> bool:
        """Whether the start of the adapters changes the weights that they lie on (PiSSA, OLoRA,
        LoftQ), so that these are the run's own and no longer those of `init`."""
        return self.tune.method == "lora" and self.lora.start != "default"

    def to_json(self) -> dict[str, Any]:
        """The resolved config as JSON values, as `config.json` has it."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


# What a resumed run may change: it bears on how far, how often and where a run goes, not on what it
# computes.
RESUMABLE = (
    "train.steps", "train.log_every", "train.eval_every", "train.eval_batches",
    "train.sample_every", "train.sample_prompt", "train.sample_tokens", "checkpoint.", "mesh",
    "logging.", "axes.", "execution.", "data.threads",
)  # fmt: skip


# Sections that the configs of older runs do not have.
LATER = ("tune", "lora", "quantize")


def base_config() -> ConfigDict:
    """Every field with its default; the fields of the model are unset, which leaves them as the
    preset has them, or without a preset the checkpoint `init`."""
    sections = {
        name: defaults(kind)
        for name, kind in get_type_hints(Experiment).items()
        if dataclasses.is_dataclass(kind)
    }
    sections["model"] = {"preset": "", **placeholders(ModelConfig)}
    return ConfigDict({**sections, "init": "", "mesh": "", "axes": {}})


def from_json(values: Mapping[str, Any]) -> Experiment:
    """The experiment of a `config.json`."""
    parts = {}
    for name, kind in get_type_hints(Experiment).items():
        plain = values.get(name, {}) if name in LATER else values[name]
        parts[name] = (
            build(kind, plain, f"config.{name}") if dataclasses.is_dataclass(kind) else plain
        )
    return Experiment(
        **{**parts, "axes": {name: tuple(names) for name, names in values["axes"].items()}}
    )


def refused_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines "data.batch_size: 16 -> 32" of what differs between two resolved configs and may not on
    resume."""
    defaults = {name: dataclasses.asdict(get_type_hints(Experiment)[name]()) for name in LATER}
    before, after = flatten({**json.loads(json.dumps(defaults)), **old}), flatten(new)
    return [
        f"{name}: {before.get(name)!r} -> {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not name.startswith(RESUMABLE)
    ]
