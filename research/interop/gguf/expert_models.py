"""The architectures qwen2moe, qwen3moe and olmoe: mixtures of experts whose rotary pairs lie in
halves."""

from typing import Any

from research.interop.gguf.architecture import (
    Architecture,
    Metadata,
    check_square,
    check_untied,
    read_biases,
    read_shape,
    write_shape,
)
from research.interop.gguf.decoder_rules import rotated_rules
from research.interop.gguf.llama import is_rotary
from research.models.config import ModelConfig

# Of each architecture: whether mixing weights sum to 1, and what norms of queries and keys are
# taken over.
_NORMALIZED = {"qwen2moe": False, "qwen3moe": True, "olmoe": False}
_NORM_OVER = {"qwen3moe": "head", "olmoe": "heads"}


def read_config(m: Metadata) -> ModelConfig:
    """The model that a file's metadata describes."""
    shape, kind = read_shape(m), m.kind
    used = m.number("expert_used_count")
    # OLMoE has no key of its own for the width of an expert; llama.cpp guesses Qwen's by this.
    default = shape["d_ff"] if kind == "olmoe" else shape["d_ff"] // max(1, used)
    shape["d_ff"] = m.number("expert_feed_forward_length", default)
    shared = m.number("expert_shared_feed_forward_length", 0) if kind == "qwen2moe" else 0
    norms = {"query_norm": True, "query_norm_over": _NORM_OVER[kind]} if kind in _NORM_OVER else {}
    return ModelConfig(
        **shape,
        **norms,
        **read_biases(m),
        experts=m.number("expert_count"),
        experts_per_token=used,
        normalized_routes=_NORMALIZED[kind],
        shared_d_ff=shared,
    )


def name_of(c: ModelConfig) -> str | None:
    """The architecture of a model with experts that has a shared one, or norms of queries and
    keys."""
    if not is_rotary(c) or not c.experts:
        return None
    if c.shared_d_ff:
        return "qwen2moe"
    if not c.query_norm:
        return None
    return "qwen3moe" if c.query_norm_over == "head" else "olmoe"


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The metadata of a model. ValueError for tied tables and for heads of another width under the
    architectures that have neither."""
    kind = name_of(c)
    if kind != "qwen3moe":
        check_square(c, kind)
        check_untied(c, kind)
    values = write_shape(c, kind) | {
        f"{kind}.expert_count": c.experts,
        f"{kind}.expert_used_count": c.experts_per_token,
        f"{kind}.expert_feed_forward_length": c.d_ff,
    }
    if c.shared_d_ff:
        values[f"{kind}.expert_shared_feed_forward_length"] = c.shared_d_ff
    return values


ARCHITECTURE = Architecture(
    names=("qwen2moe", "qwen3moe", "olmoe"),
    name_of=name_of,
    read_config=read_config,
    write_config=write_config,
    rules=lambda c, name: rotated_rules(c, "p h"),
)
