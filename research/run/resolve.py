"""From a ConfigDict to an experiment. This is the only file that reads a ConfigDict."""

import dataclasses
from typing import Any, get_type_hints

from ml_collections import ConfigDict

from research.experiment.config import Experiment
from research.experiment.fields import build, nearest, refuse_unknown
from research.interop.load import open_checkpoint
from research.models.config import ModelConfig
from research.models.config_checks import reset_unused
from research.models.presets import PRESETS


def from_config(config: ConfigDict) -> Experiment:
    """The experiment a ConfigDict describes. ValueError, one line, for an unknown field or a value
    that does not fit."""
    values = config.to_dict()
    kinds = get_type_hints(Experiment)
    refuse_unknown("config", values, kinds)
    parts = {}
    for name, kind in kinds.items():
        if name == "model":
            parts[name] = _resolve_model(values.get(name, {}), values.get("init", ""))
        elif dataclasses.is_dataclass(kind):
            parts[name] = build(kind, values.get(name, {}), f"config.{name}")
    axes = {name: tuple(names) for name, names in values.get("axes", {}).items()}
    return Experiment(**parts, init=values.get("init", ""), mesh=values.get("mesh", ""), axes=axes)


def _resolve_model(values: dict[str, Any], init: str) -> ModelConfig:
    """The preset with the fields that are set; without a preset the checkpoint's model, or the
    defaults, with them."""
    given = {name: value for name, value in values.items() if name != "preset"}
    preset = values.get("preset", "")
    if preset and preset not in PRESETS:
        raise ValueError(f"config.model.preset={preset!r} is unknown; {nearest(preset, PRESETS)}")
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
    named = {name for name, value in given.items() if value not in (None, {})}
    return build(
        ModelConfig, reset_unused(base, dataclasses.asdict(ModelConfig()), named), "config.model"
    )
