"""From a ConfigDict to an `Experiment`: model fields that a config leaves open are filled in."""

import dataclasses
import logging
from typing import Any, get_type_hints

from ml_collections import ConfigDict

from research.experiment.config import Experiment, make_experiment
from research.experiment.fields import nearest, refuse_unknown
from research.interop.load import open_checkpoint
from research.models.config import ModelConfig
from research.models.config_checks import reset_unused
from research.models.presets import PRESETS


def from_config(config: ConfigDict) -> Experiment:
    """The experiment that a ConfigDict describes.

    Model fields that are None come from `model.preset`, or else from the checkpoint `config.init`,
    whose header is read for that. ValueError of one line for an unknown field or a value that does
    not fit.

        experiment = from_config(get_config("smoke"))
    """
    values = config.to_dict()
    refuse_unknown("config", values, get_type_hints(Experiment))
    model = _resolve_model(values.get("model", {}), values.get("init", ""))
    execution = values.get("execution", {})
    named = values.get("model", {}).get("preset") or not values.get("init")
    if model["experts"] and execution.get("feed_tokens") and not named:
        # The recipe named no model, so it could not know that the checkpoint's has experts.
        logging.warning(
            "execution.feed_tokens=%d is for dense models, and %s has experts: it is 0",
            execution["feed_tokens"],
            values["init"],
        )
        values["execution"] = {**execution, "feed_tokens": 0}
    return make_experiment({**values, "model": model})


def _resolve_model(values: dict[str, Any], init: str) -> dict[str, Any]:
    """The fields of the model: those given in `values`, the others from the preset, else from the
    checkpoint `init`, else defaults. None means not given."""
    given = {name: value for name, value in values.items() if name != "preset"}
    preset = values.get("preset", "")
    if preset and preset not in PRESETS:
        raise ValueError(f"config.model.preset={preset!r} is unknown; {nearest(preset, PRESETS)}")
    if preset or not init:
        base = dataclasses.asdict(PRESETS[preset] if preset else ModelConfig())
    else:
        # Only the config is read here; the bits are verified when the parameters are.
        with open_checkpoint(init, verify=False) as checkpoint:
            base = dataclasses.asdict(checkpoint.config)
    for name, value in given.items():
        if isinstance(value, dict) and isinstance(base.get(name), dict):
            base[name] = {**base[name], **{k: v for k, v in value.items() if v is not None}}
        elif value is not None:
            base[name] = value
    # What the config itself sets must fit the model, or is refused; an unused field that only the
    # preset or checkpoint sets falls back to its default.
    named = {
        f"{name}.{inner}" if inner else name
        for name, value in given.items()
        for inner, setting in (value.items() if isinstance(value, dict) else [("", value)])
        if setting is not None
    }
    named |= {name.partition(".")[0] for name in named}
    return reset_unused(ModelConfig, base, named)
