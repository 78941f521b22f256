"""Granite 3 (arXiv:2408.13359) in Hugging Face's names: LLaMA's layers with four factors, of the
embeddings, the scores, what branches add, and the logits."""

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from research.interop.huggingface.families import llama
from research.interop.huggingface.families.fields import flag, number
from research.interop.huggingface.families.rope import read_rope
from research.models.config import ModelConfig


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json describes; `names`, the tensors, are not asked. ValueError for
    settings that our layers do not compute."""
    theta, scaling = read_rope(values)
    sizes = llama.read_sizes(values)
    scores = number(values, "attention_multiplier", 1.0)
    return ModelConfig(
        **sizes,
        rope_theta=theta,
        rope_scaling=scaling,
        attention_bias="all" if flag(values, "attention_bias", False) else "none",
        mlp_bias=flag(values, "mlp_bias", False),
        tied=flag(values, "tie_word_embeddings", False),
        embedding_scale=number(values, "embedding_multiplier", 1.0),
        branch_scale=number(values, "residual_multiplier", 1.0),
        attention_scale=0.0 if scores == sizes["head_size"] ** -0.5 else scores,
        # Logits are divided by it.
        head_scale=1 / number(values, "logits_scaling", 1.0),
    )


def serves(c: ModelConfig) -> bool:
    """True for LLaMA's layers with a factor that LLaMA and Gemma lack."""
    factors = c.branch_scale != 1.0 or c.head_scale != 1.0 or c.attention_scale != 0.0
    own = c.embedding_scale not in (1.0, c.d_model**0.5)
    return llama.is_rotary_decoder(c) and not c.branch_norm and (factors or own)


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json."""
    # A division twice over may miss a whole number by a rounding.
    scaling = 1 / c.head_scale
    whole = float(round(scaling))
    return {
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        **llama.write_sizes(c),
        "attention_bias": c.attention_bias == "all",
        "mlp_bias": c.mlp_bias,
        "embedding_multiplier": c.embedding_scale,
        "residual_multiplier": c.branch_scale,
        "attention_multiplier": c.attention_scale or c.head_size**-0.5,
        "logits_scaling": whole if whole and 1 / whole == c.head_scale else scaling,
    }


FAMILY = replace(
    llama.FAMILY,
    model_types=("granite",),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
)
