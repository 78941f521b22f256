"""The text model of Ministral 3 in Hugging Face's names: LLaMA's layers with YaRN, and queries that
grow with their position as in Llama 4."""

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from research.interop.huggingface.families import llama
from research.interop.huggingface.families.fields import flag, integer, number
from research.interop.huggingface.families.rope import parameters, read_rope, write_scaling
from research.models.config import ModelConfig

# Where config.json leaves a field out, transformers takes the default of the class.
_DEFAULTS = {"num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5}
_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json describes; `names`, the tensors, are not asked. ValueError for
    settings that our layers do not compute."""
    values = {**_DEFAULTS, **values}
    if not parameters(values):
        values["rope_parameters"] = _ROPE
    theta, scaling = read_rope(values)
    return ModelConfig(
        **llama.read_sizes(values),
        rope_theta=theta,
        rope_scaling=scaling,
        query_growth=number(parameters(values), "llama_4_scaling_beta"),
        window=integer(values, "sliding_window", 0),
        tied=flag(values, "tie_word_embeddings", False),
    )


def serves(c: ModelConfig) -> bool:
    """True for LLaMA's layers with growing queries."""
    return llama.serves(c) and c.query_growth > 0


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json, in the spelling of transformers 5, which brought the class."""
    values = {
        "architectures": ["Ministral3ForCausalLM"],
        "model_type": "ministral3",
        **llama.write_sizes(c),
        "sliding_window": c.window or None,
    }
    del values["rope_scaling"], values["rope_theta"]
    own = {"rope_theta": c.rope_theta, "llama_4_scaling_beta": c.query_growth}
    return {**values, "rope_parameters": {**(write_scaling(c) or {}), **own}}


FAMILY = replace(
    llama.FAMILY,
    model_types=("ministral3",),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
)
