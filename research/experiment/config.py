"""What a run is told: one frozen dataclass a section, from and to the values of a `config.json`.

A config file starts from `base_config()`, which has every field there is with its default, and
changes what differs. A misspelt field fails and names the nearest; every field either changes the
run or is refused.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from ml_collections import ConfigDict

from research.data.config import DataConfig
from research.experiment.fields import build, defaults, may_change, placeholders
from research.files import flatten
from research.models.config import Execution, ModelConfig
from research.models.config_checks import reset_unused
from research.objectives.choose import flat_defaults, objective_class, own_settings
from research.objectives.config import ObjectiveConfig
from research.parallel.axes import merge_rules
from research.parallel.mesh import parse_mesh
from research.precision import Precision
from research.training.checkpoint import CheckpointConfig
from research.training.optimizer import OptimizerConfig
from research.tuning.lora_specs import LoraConfig
from research.tuning.method import QuantizeConfig, TuneConfig, refuse_unused

# On a field: a resumed run may change it, because it bears on how far, how often and where a run
# goes, and not on what it computes. On a section it holds for all of its fields.
RESUME = {"resume": True}


@dataclass(frozen=True)
class TrainConfig:
    """How long a run is, and how often it reports. Intervals are in steps; 0 is never.

    accumulate     micro-batches of a step, whose gradients are summed
    eval_batches   of each evaluation but the last, which takes all; 0 takes all every time
    sample_prompt  what the model goes on from, every `sample_every` steps and at the end, for
                   `sample_tokens` tokens
    """

    steps: int = field(default=1000, metadata=RESUME)
    seed: int = 0
    accumulate: int = 1
    log_every: int = field(default=10, metadata=RESUME)
    eval_every: int = field(default=0, metadata=RESUME)
    eval_batches: int = field(default=0, metadata=RESUME)
    sample_every: int = field(default=0, metadata=RESUME)
    sample_prompt: str = field(default="", metadata=RESUME)
    sample_tokens: int = field(default=128, metadata=RESUME)

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
    """A whole run, resolved.

    init   the checkpoint whose parameters are the start, as
           `research.interop.load.open_checkpoint` takes it; "" starts anew
    mesh   axes and sizes, as `research.parallel.mesh.parse_mesh` reads them
    axes   changes to `research.parallel.axes.RULES`: mesh axes by logical axis
    evals  settings by evaluation, for those that a run makes beside the held-out loss
    """

    model: ModelConfig
    tune: TuneConfig
    lora: LoraConfig
    quantize: QuantizeConfig
    # How the layers run changes no result; see its docstring.
    execution: Execution = field(metadata=RESUME)
    precision: Precision
    objective: ObjectiveConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    checkpoint: CheckpointConfig = field(metadata=RESUME)
    logging: LoggingConfig = field(metadata=RESUME)
    init: str = ""
    mesh: str = field(default="", metadata=RESUME)
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict, metadata=RESUME)
    evals: dict[str, dict[str, Any]] = field(default_factory=dict, metadata=RESUME)

    def __post_init__(self):
        parse_mesh(self.mesh)
        refuse_unused(self.tune, self.lora, self.quantize)
        merge_rules(self.axes)
        _refuse_misfits(self.objective.name, self.model.kind, self.model.labels)
        self._refuse_unused()
        length = self.data.sequence_length
        if self.model.position == "learned" and length > self.model.max_length:
            raise ValueError(
                f"data.sequence_length={length} is over the {self.model.max_length} learned "
                "positions; set config.model.max_length"
            )

    def _refuse_unused(self) -> None:
        for section, name, default, of in _unused(self.model.experts, self.objective.name):
            value = getattr(getattr(self, section), name)
            if value != default:
                raise ValueError(
                    f"{section}.{name}={value!r} is for {of}, which this run is not; "
                    f"set config.{section}.{name} to {default!r}"
                )

    @property
    def changes_base(self) -> bool:
        """Whether the start of the adapters changes the weights that they lie on (PiSSA, OLoRA,
        LoftQ), so that these are the run's own and no longer those of `init`."""
        return self.tune.method == "lora" and self.lora.start != "default"

    def to_json(self) -> dict[str, Any]:
        """The resolved config as JSON values, as `config.json` has it: the objective's section is
        flat, with the settings that it does not have at their defaults."""
        values = dataclasses.asdict(self)
        values["objective"] = flat_defaults() | values["objective"]
        return json.loads(json.dumps(values))


def _unused(experts: int, objective: str) -> list[tuple[str, str, Any, str]]:
    """(section, field, default, what it is for) of each field that changes nothing in a run because
    of another section."""
    unused: list[tuple[str, str, Any, str]] = []
    if experts:  # tokens go to experts by groups of their own
        unused.append(("execution", "feed_tokens", Execution().feed_tokens, "dense models"))
    if not objective_class(objective).answers_chats:
        unused.append(("data", "chat_template", DataConfig().chat_template, "the objective chat"))
    return unused


def _refuse_misfits(name: str, kind: str, labels: int) -> None:
    """ValueError for a model of a kind that the objective does not train, or without its head."""
    objective = objective_class(name)
    if kind != objective.model_kind:
        raise ValueError(
            f"objective {name} is for a model of kind {objective.model_kind!r}, "
            f"this one is {kind!r}"
        )
    if (labels > 1) != objective.classifies or labels == 1:
        raise ValueError(
            f"model.labels={labels} under objective {name}: set config.model.labels to the "
            "number of classes for classification, and to 0 otherwise"
        )


def base_config() -> ConfigDict:
    """All defaults. Model fields are None: they are taken from `model.preset`, else from the
    checkpoint `init`."""
    sections = {
        name: defaults(kind)
        for name, kind in get_type_hints(Experiment).items()
        if dataclasses.is_dataclass(kind)
    }
    sections["model"] = {"preset": "", **placeholders(ModelConfig)}
    sections["objective"] = flat_defaults()
    return ConfigDict({**sections, "init": "", "mesh": "", "axes": {}, "evals": {}})


def make_experiment(values: Mapping[str, Any]) -> Experiment:
    """The experiment of plain values by section, what is absent at its default. ValueError for an
    unknown field, a value of another type, or one that does not fit."""
    parts = {}
    flat = flat_defaults() | values.get("objective", {})
    settings = own_settings(flat)
    model = {"kind": ModelConfig.kind, "labels": ModelConfig.labels, **values.get("model", {})}
    # Before the model is made: that it is of the wrong kind says more than which field it lacks.
    _refuse_misfits(flat["name"], model["kind"], model["labels"])
    for name, kind in get_type_hints(Experiment).items():
        if name == "objective":
            kind = objective_class(flat["name"]).config
            parts[name] = build(kind, settings, "config.objective")
        elif dataclasses.is_dataclass(kind):
            parts[name] = build(kind, values.get(name, {}), f"config.{name}")
        elif name in values:
            parts[name] = values[name]
    axes = {name: tuple(names) for name, names in values.get("axes", {}).items()}
    return Experiment(**{**parts, "axes": axes})


def from_json(values: Mapping[str, Any]) -> Experiment:
    """The experiment of a `config.json`, of an older run as well: see `complete`."""
    return make_experiment(complete(values))


def complete(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a `config.json` with every field there is today.

    A field that a run was made without is at its default, which is what it did then. A setting
    that changes nothing in its model or under its objective is at its default too: older versions
    let it stand. Fields that there are not any more stay, for the caller to refuse.
    """
    sections = {}
    for name, kind in get_type_hints(Experiment).items():
        if dataclasses.is_dataclass(kind):
            sections[name] = {**dataclasses.asdict(kind()), **values.get(name, {})}
    whole = {"init": "", "mesh": "", "axes": {}, "evals": {}, **values, **sections}
    model = dataclasses.asdict(ModelConfig())
    scaling = {**model["rope_scaling"], **whole["model"]["rope_scaling"]}
    whole["model"] = reset_unused(ModelConfig, {**whole["model"], "rope_scaling": scaling})

    plain = {**flat_defaults(), **values.get("objective", {})}
    own = {f.name for f in dataclasses.fields(objective_class(plain["name"]).config)}
    unused = {name: value for name, value in flat_defaults().items() if name not in own}
    whole["objective"] = {**plain, **unused}
    for section, name, default, _ in _unused(whole["model"]["experts"], plain["name"]):
        whole[section] = {**whole[section], name: default}
    return whole


def refused_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines "data.batch_size: 16 -> 32" of what differs between two `config.json` and may not on
    resume, see `RESUME`. A field that one of them lacks is at its default."""
    before, after = (flatten(json.loads(json.dumps(complete(one)))) for one in (old, new))
    return [
        f"{name}: {before.get(name)!r} -> {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not may_change(Experiment, name)
    ]
