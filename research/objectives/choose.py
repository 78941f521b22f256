"""The table of objectives: from a name to its class, its settings, and the objective itself."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from research.data.tokenizers import Tokenizer
from research.data.tokenizers.special import decoder_start
from research.models.config import ModelConfig
from research.objectives.causal_lm import CausalLM
from research.objectives.chat import Chat
from research.objectives.classification import Classification
from research.objectives.config import ObjectiveConfig
from research.objectives.contrastive import Contrastive
from research.objectives.distillation import Distillation
from research.objectives.judgement import Judgement
from research.objectives.masked_lm import MaskedLM
from research.objectives.media_chat import MediaChat
from research.objectives.objective import Objective
from research.objectives.on_policy_distillation import OnPolicyDistillation
from research.objectives.policy import Policy
from research.objectives.preference import Preference
from research.objectives.question_answering import QuestionAnswering
from research.objectives.reward import Reward
from research.objectives.span_corruption import SpanCorruption
from research.objectives.token_classification import TokenClassification
from research.objectives.translation import Translation

# One row an objective: its name and its class.
OBJECTIVES: dict[str, type[Objective]] = {
    CausalLM.name: CausalLM,
    Chat.name: Chat,
    MediaChat.name: MediaChat,
    Contrastive.name: Contrastive,
    MaskedLM.name: MaskedLM,
    Classification.name: Classification,
    TokenClassification.name: TokenClassification,
    QuestionAnswering.name: QuestionAnswering,
    Judgement.name: Judgement,
    Distillation.name: Distillation,
    OnPolicyDistillation.name: OnPolicyDistillation,
    Policy.name: Policy,
    Preference.name: Preference,
    Reward.name: Reward,
    SpanCorruption.name: SpanCorruption,
    Translation.name: Translation,
}
# A config without the section `objective` pretrains a decoder.
DEFAULT = CausalLM.name


def objective_class(name: str) -> type[Objective]:
    """The objective class called `name`, for example "causal_lm". Its class attributes say which
    kind of model it trains and which layout of data it reads. ValueError for an unknown name."""
    if name not in OBJECTIVES:
        raise ValueError(f"objective.name={name!r}; choose one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def flat_defaults() -> dict[str, Any]:
    """The section `objective` of a config file: {setting: default} over all objectives, and the
    name of the default one. A setting that two objectives share means the same in both."""
    settings = {
        field.name: field.default
        for objective in OBJECTIVES.values()
        for field in fields(objective.config)
    }
    return settings | {"name": DEFAULT}


def own_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in `values`, a flat section, that belong to the objective `values["name"]`.

    ValueError for a setting of another objective that differs from its default: it would be
    ignored. Settings that no objective has are passed on, and the caller refuses them with the
    nearest valid name.

    >>> own_settings(flat_defaults() | {"name": "causal_lm", "z_loss": 1e-4})
    {'label_smoothing': 0.0, 'z_loss': 0.0001}
    """
    name = values["name"]
    accepted = {field.name for field in fields(objective_class(name).config)}
    # A config file cannot leave settings of other objectives out, so a default says nothing; any
    # other value was meant to have an effect.
    defaults, settings = flat_defaults(), {}
    for setting, value in values.items():
        if setting in accepted or setting not in defaults:
            settings[setting] = value
        elif value != defaults[setting]:
            raise ValueError(
                f"objective.{setting}={value!r} is set and objective {name} does not use it; "
                f"leave it at {defaults[setting]!r}"
            )
    return {setting: value for setting, value in settings.items() if setting != "name"}


def make_objective(
    config: ObjectiveConfig, tokenizer: Tokenizer, model: ModelConfig | None = None
) -> Objective:
    """The objective that `config` describes, for examples as the `model` reads them. ValueError if
    the tokenizer lacks a token that it needs, such as a mask token for masked language modelling.
    """
    # `Any`: the protocol does not say that its classes are dataclasses, with a start or without.
    objective: Any = objective_class(config.name).make(config, tokenizer)
    # What an objective of pairs takes without a model is the start of most decoders.
    if model is None or model.decoder_start == ModelConfig.decoder_start:
        return objective
    # The protocol does not say that its classes are dataclasses.
    pairs: Any = objective
    return replace(pairs, start_id=decoder_start(tokenizer, model.decoder_start))
