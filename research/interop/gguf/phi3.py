"""The architecture phi3, of Phi 3 and 4: queries, keys and values in one matrix, gate and up in
another, and heads that may be rotated in part."""

from typing import Any

from research.interop.gguf.architecture import (
    Architecture,
    Metadata,
    check_square,
    read_shape,
    write_shape,
)
from research.interop.gguf.decoder_rules import fused, rotated_rules
from research.interop.gguf.llama import is_rotary
from research.models.config import ModelConfig


def read_config(m: Metadata) -> ModelConfig:
    """The model that a file's metadata describes."""
    return ModelConfig(**read_shape(m), window=m.number("attention.sliding_window", 0))


def name_of(c: ModelConfig) -> str | None:
    """ "phi3" for LLaMA's layers with heads that are rotated in part, or with LongRoPE; None also
    for those that llama.cpp loads under the name llama alone."""
    plain = is_rotary(c) and c.norm_before and not (c.branch_norm or c.query_norm or c.experts)
    plain = plain and c.attention_bias == "none" and not c.mlp_bias
    wide = c.heads * c.head_size != c.d_model and not c.rotary_size
    longrope = c.rope_scaling.kind == "longrope"
    return "phi3" if plain and not wide and (c.rotary_size > 0 or longrope) else None


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The metadata of a model. ValueError for heads of another width."""
    check_square(c, "phi3")
    values = write_shape(c, "phi3")
    if c.window:
        values["phi3.attention.sliding_window"] = c.window
    return values


def notes(c: ModelConfig, kind: str = "phi3") -> list[str]:
    """A line on the window, which llama.cpp switched off for this architecture, and for `kind` that
    shares its layers."""
    if not c.window:
        return []
    return [
        f"llama.cpp has no window under the architecture {kind}: beyond {c.window:,} tokens it "
        "computes other logits than this model"
    ]


ARCHITECTURE = Architecture(
    names=("phi3",),
    name_of=name_of,
    read_config=read_config,
    write_config=write_config,
    rules=lambda c, name: fused(rotated_rules(c, "p h")),
    notes=notes,
)
