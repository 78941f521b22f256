"""Phi 3, Phi 4 and Phi-4-mini (arXiv:2404.14219, arXiv:2412.08905) in Hugging Face's names.

LLaMA's layers with queries, keys and values in one matrix, and gate and up in another. Phi-4-mini
rotates three quarters of a head; the models for long texts scale its positions by LongRoPE.
"""

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from research.interop.huggingface.families import llama
from research.interop.huggingface.families.fields import flag, integer, number, refuse
from research.interop.huggingface.families.rope import (
    parameters,
    read_rope,
    read_rotary_size,
    rotary_share,
    write_scaling,
)
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig

# Where config.json leaves a field out, transformers takes the default of the class.
_DEFAULTS = {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096}
_FUSED = ("query", "key", "value")


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json describes; `names`, the tensors, are not asked. ValueError for
    settings that our layers do not compute."""
    values = {**_DEFAULTS, **{name: x for name, x in values.items() if x is not None}}
    scaling = parameters(values)
    # The first releases called LongRoPE so.
    if scaling.get("rope_type", scaling.get("type")) in ("su", "yarn"):
        values["rope_scaling"] = {**scaling, "rope_type": "longrope"}
    sizes = llama.read_sizes(values)
    theta, rope_scaling = read_rope(values, partial=True)
    dropout = number(values, "resid_pdrop", 0.0)
    # Ours is one rate, for the embeddings and what branches add.
    refuse(values, embd_pdrop=dropout)
    return ModelConfig(
        **sizes,
        rope_theta=theta,
        rope_scaling=rope_scaling,
        rotary_size=read_rotary_size(values, sizes["head_size"]),
        window=integer(values, "sliding_window", 0),
        tied=flag(values, "tie_word_embeddings", False),
        dropout=dropout,
    )


def serves(c: ModelConfig) -> bool:
    """True for LLaMA's layers with heads that are rotated in part, or with LongRoPE; the others are
    LLaMA's or Mistral's, whatever they were called."""
    return llama.serves(c) and (c.rotary_size > 0 or c.rope_scaling.kind == "longrope")


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json, in the spelling of transformers 4, which version 5 reads too."""
    values = {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        **llama.write_sizes(c),
        "partial_rotary_factor": rotary_share(c),
        "original_max_position_embeddings": c.max_length,
        "sliding_window": c.window or None,
        "resid_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
    }
    scaling = write_scaling(c)
    if scaling is not None:
        # transformers 4 wants these three fields alone, and the original length beside them.
        length = scaling.pop("original_max_position_embeddings", c.max_length)
        kind = scaling.pop("rope_type")
        values["original_max_position_embeddings"] = length
        values["rope_scaling"] = {"type": kind, **scaling}
    return values


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """LLaMA's tensors, of which five are two here."""
    layer, ours = "model.layers.{layer}", "layers"
    apart = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    kept = [r for r in llama.rules(c) if r.name.split(".")[-2] not in apart]
    rows = " | ".join(f"({axis} H) D -> D {axis} H" for axis in ("N", "K", "K"))
    attention = tuple(f"{ours}/attention/{name}" for name in _FUSED)
    return (
        *kept,
        Rule(f"{layer}.self_attn.qkv_proj.weight", attention, rows),
        Rule(
            f"{layer}.mlp.gate_up_proj.weight",
            (f"{ours}/mlp/gate", f"{ours}/mlp/up"),
            "(2 F) D -> 2 D F",
        ),
    )


FAMILY = replace(
    llama.FAMILY,
    model_types=("phi3",),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
)
