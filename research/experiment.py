"""From a ConfigDict to frozen dataclasses. This is the only file that sees a ConfigDict.

A config file starts from `base_config()`, which has every field there is with its default, and changes what differs. A
misspelt field fails and names the nearest; every field either changes the program or is refused.
"""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict, config_dict

from research.axes import merge_rules
from research.data.corpus import DataConfig
from research.interop.load import open_checkpoint
from research.mesh import parse_mesh
from research.models.config import Execution, ModelConfig
from research.models.presets import PRESETS
from research.objectives.choose import ObjectiveConfig
from research.precision import Precision
from research.training.checkpoint import CheckpointConfig
from research.training.optimizer import OptimizerConfig
from research.tuning import QuantizeConfig, TuneConfig, refuse_unused
from research.weights.new_lora import LoraConfig


@dataclass(frozen=True)
class TrainConfig:
    """How long, and how often it reports. Intervals are in steps; 0 is never."""

    steps: int = 1000
    seed: int = 0
    accumulate: int = 1  # micro-batches of a step
    log_every: int = 10
    eval_every: int = 0
    eval_batches: int = 0  # of each evaluation but the last, which takes all; 0 takes all every time
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
    """A whole run, resolved. `axes` overrides `research.axes.RULES`.

    `init` is the checkpoint whose parameters are the start, as `research.interop.load.open_checkpoint` takes it.
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
            raise ValueError(f"objective {name} is for a model of kind {wanted!r}, this one is {self.model.kind!r}")
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

    def to_json(self) -> dict[str, Any]:
        """The resolved config as JSON values, as `config.json` has it."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


# What a resumed run may change: it bears on how far, how often and where a run goes, not on what it computes.
RESUMABLE = ("train.steps", "train.log_every", "train.eval_every", "train.eval_batches", "train.sample_every",
             "train.sample_prompt", "train.sample_tokens", "checkpoint.", "mesh", "logging.", "axes.", "execution.",
             "data.threads")  # fmt: skip


# Sections that the configs of older runs do not have.
LATER = ("tune", "lora", "quantize")


def base_config() -> ConfigDict:
    """Every field with its default; the fields of the model are unset, which leaves them as the preset has them, or
    without a preset the checkpoint `init`."""
    sections = {
        name: _defaults(kind) for name, kind in get_type_hints(Experiment).items() if dataclasses.is_dataclass(kind)
    }
    sections["model"] = {"preset": "", **_unset(ModelConfig)}
    return ConfigDict({**sections, "init": "", "mesh": "", "axes": {}})


def parse_arg(arg: str, **defaults: Any) -> ConfigDict:
    """The string behind the colon of `--config=FILE:ARG` as typed values: "model=gpt2,smoke" sets model and smoke.

    Types are those of the defaults; a bare name is True. ValueError for an unknown name.
    """
    values = dict(defaults)
    for part in filter(None, arg.split(",")):
        name, given, text = part.partition("=")
        if name not in defaults:
            raise ValueError(f"config argument {name!r} is unknown; {_nearest(name, defaults)}")
        default = defaults[name]
        if isinstance(default, bool):
            if text.lower() not in ("", "true", "false", "1", "0"):
                raise ValueError(f"config argument {part!r}: {name} is true or false")
            values[name] = not given or text.lower() in ("true", "1")
        else:
            try:
                values[name] = type(default)(text)
            except ValueError:
                raise ValueError(f"config argument {part!r}: {name} is of type {type(default).__name__}") from None
    return ConfigDict(values)


def from_config(config: ConfigDict) -> Experiment:
    """The experiment a ConfigDict describes. ValueError, one line, for an unknown field or a value that does not fit."""
    values = config.to_dict()
    kinds = get_type_hints(Experiment)
    _refuse_unknown("config", values, kinds)
    parts = {}
    for name, kind in kinds.items():
        if name == "model":
            parts[name] = _resolve_model(values.get(name, {}), values.get("init", ""))
        elif dataclasses.is_dataclass(kind):
            parts[name] = _build(kind, values.get(name, {}), f"config.{name}")
    axes = {name: tuple(names) for name, names in values.get("axes", {}).items()}
    return Experiment(**parts, init=values.get("init", ""), mesh=values.get("mesh", ""), axes=axes)


def from_json(values: Mapping[str, Any]) -> Experiment:
    """The experiment of a `config.json`."""
    parts = {}
    for name, kind in get_type_hints(Experiment).items():
        plain = values.get(name, {}) if name in LATER else values[name]
        parts[name] = _build(kind, plain, f"config.{name}") if dataclasses.is_dataclass(kind) else plain
    return Experiment(**{**parts, "axes": {name: tuple(names) for name, names in values["axes"].items()}})


def refused_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines "data.batch_size: 16 -> 32" of what differs between two resolved configs and may not on resume."""
    defaults = {name: dataclasses.asdict(get_type_hints(Experiment)[name]()) for name in LATER}
    before, after = _flat({**json.loads(json.dumps(defaults)), **old}), _flat(new)
    return [
        f"{name}: {before.get(name)!r} -> {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not name.startswith(RESUMABLE)
    ]


def _resolve_model(values: dict[str, Any], init: str) -> ModelConfig:
    """The preset with the fields that are set; without a preset the checkpoint's model, or the defaults, with them."""
    given = {name: value for name, value in values.items() if name != "preset"}
    preset = values.get("preset", "")
    if preset and preset not in PRESETS:
        raise ValueError(f"config.model.preset={preset!r} is unknown; {_nearest(preset, PRESETS)}")
    if preset or not init:
        base = dataclasses.asdict(PRESETS[preset] if preset else ModelConfig())
    else:
        with open_checkpoint(init, verify=False) as checkpoint:
            base = dataclasses.asdict(checkpoint.config)
    for name, value in given.items():
        if isinstance(value, dict) and isinstance(base.get(name), dict):
            base[name] = {**base[name], **{k: v for k, v in value.items() if v is not None}}
        elif value is not None:
            base[name] = value
    return _build(ModelConfig, base, "config.model")


def _build(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a dict; unknown fields, and values of another type than the field's default, are refused."""
    hints = get_type_hints(kind)
    _refuse_unknown(where, values, hints)
    made = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = _build(hints[name], value, f"{where}.{name}")
        elif isinstance(value, (list, tuple)):
            value = tuple(tuple(item) if isinstance(item, (list, tuple)) else item for item in value)
        elif value is not None or not isinstance(hints[name], UnionType):
            wanted = _present(hints[name])
            value = float(value) if wanted is float and type(value) is int else value
            if type(value) is not wanted:
                raise ValueError(f"{where}.{name}={value!r} must be of type {wanted.__name__}")
        made[name] = value
    return kind(**made)


def _refuse_unknown(where: str, values: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name in values:
        if name not in known:
            raise ValueError(f"{where} has no field {name!r}; {_nearest(name, known)}")


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"the nearest is {near[0]!r}; there are {', '.join(known)}" if len(known) < 20 else f"the nearest is {near[0]!r}"


def _defaults(kind: type) -> dict[str, Any]:
    """The defaults of a dataclass; a field that may be None and is gets a placeholder, so that it can be overridden."""
    plain, hints = kind(), get_type_hints(kind)
    return {
        f.name: config_dict.placeholder(_present(hints[f.name])) if getattr(plain, f.name) is None else getattr(plain, f.name)
        for f in dataclasses.fields(kind)
    }


def _present(hint: Any) -> Any:
    """int of `int | None`; the type behind a subscript, tuple of `tuple[str, ...]`."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] if isinstance(hint, UnionType) else [hint]
    return get_origin(kinds[0]) or kinds[0]


def _unset(kind: type) -> dict[str, Any]:
    """A typed placeholder for each field."""
    return {
        name: _unset(hint) if dataclasses.is_dataclass(hint) else config_dict.placeholder(hint)
        for name, hint in get_type_hints(kind).items()
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {f"{prefix}{name}": value}
    return flat


def shrink_model(config: ConfigDict, family: ModelConfig) -> None:
    """Sets the sizes of a smoke run: the family's layers at a width of 64, in numbers that 8 devices divide."""
    m = config.model
    m.vocab_size, m.layers, m.d_model, m.d_ff = 512, 2, 64, 128
    m.heads = m.kv_heads = 8
    m.head_size, m.max_length = 8, 64
    if family.kv_heads != family.heads:
        m.kv_heads = 4
    if family.encoder_layers:
        m.encoder_layers = 2
    if family.window:
        m.window = 16
    if family.experts:
        m.experts = 8
    if family.head_scale != 1.0:
        m.head_scale = m.d_model**-0.5
    if family.embedding_scale != 1.0:
        m.embedding_scale = m.d_model**0.5
