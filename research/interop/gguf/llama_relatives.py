"""The architectures smollm3, granite and mistral3 (Ministral 3): LLaMA's tensors, with the two
elements of a rotary pair next to each other, and one thing more each.
"""

from dataclasses import replace
from typing import Any

from research.interop.gguf import rope_keys
from research.interop.gguf.architecture import (
    Architecture,
    Metadata,
    read_biases,
    read_shape,
    shortest,
    write_shape,
)
from research.interop.gguf.decoder_rules import rotated_rules
from research.interop.gguf.llama import is_rotary
from research.models.config import ModelConfig

# llama.cpp has no key for it.
_UNROTATED_EVERY = 4


def _is_plain(c: ModelConfig) -> bool:
    """True for LLaMA's layers without experts."""
    norms = c.norm_before and not (c.branch_norm or c.query_norm)
    return is_rotary(c) and norms and not c.experts


def _read_smollm3(m: Metadata) -> ModelConfig:
    return ModelConfig(**read_shape(m), **read_biases(m), unrotated_every=_UNROTATED_EVERY)


def _name_smollm3(c: ModelConfig) -> str | None:
    return "smollm3" if _is_plain(c) and c.unrotated_every else None


def _write_smollm3(c: ModelConfig) -> dict[str, Any]:
    if c.mlp_bias:
        raise ValueError("GGUF's smollm3 architecture has no mlp_bias=True; use --to=hf")
    return write_shape(c, "smollm3")


def _read_granite(m: Metadata) -> ModelConfig:
    shape = read_shape(m)
    scores = shortest(m.number("attention.scale", 0.0))
    return ModelConfig(
        **shape,
        **read_biases(m),
        embedding_scale=shortest(m.number("embedding_scale", 0.0)) or 1.0,
        branch_scale=shortest(m.number("residual_scale", 0.0)) or 1.0,
        attention_scale=0.0 if scores == shortest(shape["head_size"] ** -0.5) else scores,
        head_scale=1 / shortest(m.number("logit_scale")),  # logits are divided by it
    )


def _name_granite(c: ModelConfig) -> str | None:
    factors = c.branch_scale != 1.0 or c.head_scale != 1.0 or c.attention_scale != 0.0
    own = c.embedding_scale not in (1.0, c.d_model**0.5)
    return "granite" if _is_plain(c) and (factors or own) else None


def _write_granite(c: ModelConfig) -> dict[str, Any]:
    values = write_shape(c, "granite") | {
        "granite.embedding_scale": float(c.embedding_scale),
        "granite.residual_scale": float(c.branch_scale),
        # A division twice over may miss a whole number by a rounding, which float32 drops.
        "granite.logit_scale": 1 / c.head_scale,
    }
    if c.attention_scale:
        values["granite.attention.scale"] = float(c.attention_scale)
    return values


def _read_mistral3(m: Metadata) -> ModelConfig:
    growth = shortest(m.number("attention.temperature_scale", 0.0))
    # Queries grow by the original length of the scaling.
    scaling = rope_keys.read_keys(m)
    return ModelConfig(**read_shape(m), **read_biases(m), query_growth=growth, rope_scaling=scaling)


def _name_mistral3(c: ModelConfig) -> str | None:
    return "mistral3" if _is_plain(c) and c.query_growth else None


def _write_mistral3(c: ModelConfig) -> dict[str, Any]:
    values = write_shape(c, "mistral3")
    return values | {"mistral3.attention.temperature_scale": float(c.query_growth)}


_NEIGHBOURS = Architecture(
    names=(),
    name_of=_name_smollm3,
    read_config=_read_smollm3,
    write_config=_write_smollm3,
    rules=lambda c, name: rotated_rules(c, "h p"),
)
SMOLLM3 = replace(_NEIGHBOURS, names=("smollm3",))
GRANITE = replace(
    _NEIGHBOURS,
    names=("granite",),
    name_of=_name_granite,
    read_config=_read_granite,
    write_config=_write_granite,
)
MISTRAL3 = replace(
    _NEIGHBOURS,
    names=("mistral3",),
    name_of=_name_mistral3,
    read_config=_read_mistral3,
    write_config=_write_mistral3,
)
