"""The table of objectives: from a name to its class, its settings, and the objective itself."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from research.data.tokenizers import Tokenizer
from research.objectives.causal_lm import CausalLM
from research.objectives.chat import Chat
from research.objectives.classification import Classification
from research.objectives.config import ObjectiveConfig
from research.objectives.masked_lm import MaskedLM
from research.objectives.objective import Objective
from research.objectives.span_corruption import SpanCorruption
from research.objectives.translation import Translation

# One row an objective: its name and its class.
OBJECTIVES: dict[str, type[Objective]] = {
    CausalLM.name: CausalLM,
    Chat.name: Chat,
    MaskedLM.name: MaskedLM,
    Classification.name: Classification,
    SpanCorruption.name: SpanCorruption,
    Translation.name: Translation,
}
DEFAULT = CausalLM.name


def objective_class(name: str) -> type[Objective]:
    """The class of a name; its attributes say what it trains and reads. ValueError for a name that
    there is not."""
    if name not in OBJECTIVES:
        raise ValueError(f"objective.name={name!r}; choose one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def flat_defaults() -> dict[str, Any]:
    """The section `config.objective` as a config file has it: the name, and the settings of all
    objectives at their defaults. A setting that two objectives share means the same in both."""
    settings = {
        field.name: field.default
        for objective in OBJECTIVES.values()
        for field in fields(objective.config)
    }
    return settings | {"name": DEFAULT}


def own_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the flat section's values that the named objective has, without the name.

    ValueError for one of another objective that is not at its default: it would change nothing.
    Names that no objective has are kept, for the caller to refuse with the nearest.
    """
    name = values["name"]
    own = {field.name for field in fields(objective_class(name).config)}
    defaults, kept = flat_defaults(), {}
    for setting, value in values.items():
        if setting in own or setting not in defaults:
            kept[setting] = value
        elif value != defaults[setting]:
            raise ValueError(
                f"objective.{setting}={value!r} is set and objective {name} does not use it; "
                f"leave it at {defaults[setting]!r}"
            )
    return {setting: value for setting, value in kept.items() if setting != "name"}


def make_objective(config: ObjectiveConfig, tokenizer: Tokenizer) -> Objective:
    """The objective of a config; ValueError where the tokenizer lacks a token that it needs."""
    return objective_class(config.name).make(config, tokenizer)
