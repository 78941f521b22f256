"""The architectures llama (LLaMA, Mistral, Mixtral, SmolLM2), qwen2 and qwen3.

llama.cpp rotates neighbouring elements (2i, 2i + 1) of a head under "llama", and elements
(i, i + H/2) under the others. Hugging Face's folders and our layers have the second order, so the
rows of queries and keys are permuted between the formats for "llama" alone.
"""

from typing import Any

from research.interop.gguf.architecture import (
    Architecture,
    Metadata,
    check_square,
    read_biases,
    read_shape,
    write_shape,
)
from research.interop.gguf.decoder_rules import rotated_rules
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig


def read_config(m: Metadata) -> ModelConfig:
    """The model that a file's metadata describes."""
    experts, shape = m.number("expert_count", 0), read_shape(m)
    if m.kind == "llama" and shape["rotary_size"]:
        raise ValueError("the architecture llama rotates whole heads, and the file says a part")
    return ModelConfig(
        **shape,
        window=m.number("attention.sliding_window", 0),
        query_norm=m.kind == "qwen3",
        **read_biases(m),
        experts=experts,
        **({"experts_per_token": m.number("expert_used_count", 2)} if experts else {}),
    )


def name_of(c: ModelConfig) -> str | None:
    """The architecture of a rotary decoder with RMS norms; None for others, such as one with a
    shared expert or without norms before attention and MLP."""
    if not is_rotary(c) or c.shared_d_ff or not c.norm_before:
        return None
    if c.query_norm:
        return "qwen3"
    return "qwen2" if c.attention_bias == "qkv" else "llama"


def is_rotary(c: ModelConfig) -> bool:
    """True for a decoder with rotary positions and RMS norms, whose attention has neither latents
    nor sinks."""
    rotary = c.kind == "decoder" and c.position == "rope" and c.norm == "rms"
    return rotary and not c.kv_latent and not c.attention_sinks


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The metadata of a model. ValueError for a window or experts under a Qwen architecture, which
    has neither in llama.cpp."""
    # Window and experts are written for "llama" alone: llama.cpp builds Qwen's layers without
    # them.
    kind = name_of(c)
    if kind != "llama" and (c.experts or c.window):
        raise ValueError(f"GGUF's {kind} architecture has no experts and no window; use --to=hf")
    if kind == "qwen2":
        check_square(c, kind)
    if kind == "llama" and c.rotary_size:
        raise ValueError("GGUF's llama architecture rotates whole heads; use --to=hf")
    values = write_shape(c, kind)
    if c.window:
        values[f"{kind}.attention.sliding_window"] = c.window
    if c.experts:
        values |= {
            f"{kind}.expert_count": c.experts,
            f"{kind}.expert_used_count": c.experts_per_token,
        }
    return values


def rules(c: ModelConfig, name: str) -> tuple[Rule, ...]:
    """The tensors of a model under an architecture's name, as rules that read both ways."""
    # By the name and not by the model: a "llama" may have the biases that every "qwen2" has.
    return rotated_rules(c, "h p" if name == "llama" else "p h")


def notes(c: ModelConfig) -> list[str]:
    """A line on the window, which llama.cpp does not read under these architectures."""
    if not c.window:
        return []
    return [
        f"llama.cpp has no window under the architecture {name_of(c)}: beyond {c.window:,} tokens "
        "it computes other logits than this model"
    ]


ARCHITECTURE = Architecture(
    names=("llama", "qwen2", "qwen3"),
    name_of=name_of,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    notes=notes,
)
