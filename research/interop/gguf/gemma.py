"""The architectures gemma, gemma2 and gemma3 (text).

Their GGUF files hold 1 + w of each norm's scale, where Hugging Face folders hold w.
"""

from typing import Any

from research.interop.gguf import llama
from research.interop.gguf.architecture import (
    Architecture,
    Metadata,
    read_shape,
    shortest,
    write_shape,
)
from research.interop.gguf.decoder_rules import rotated_rules
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig

# Every so many layers one is global, in a file that does not say.
_PERIODS = {"gemma2": 2, "gemma3": 6}
# llama.cpp knows the 27B models by their number of layers and scales their scores by the width a
# head would have, not by the width it has.
_WIDE_SCORES = {"gemma2": 46, "gemma3": 62}


def read_config(m: Metadata) -> ModelConfig:
    """The model that a file's metadata describes."""
    shape = read_shape(m)
    if m.kind != "gemma":
        shape |= _read_layers(m, shape)
    return ModelConfig(
        **shape,
        query_norm=m.kind == "gemma3",
        branch_norm=m.kind != "gemma",
        activation="gelu_tanh",
        embedding_scale=shape["d_model"] ** 0.5,
    )


def _read_layers(m: Metadata, shape: dict[str, Any]) -> dict[str, Any]:
    """The fields that Gemma 2 and 3 have beyond Gemma 1: window, global layers, rotary bases of the
    two kinds of layer, scale and soft caps of the scores."""
    # Where a file lacks a key, llama.cpp's defaults for Gemma 2; for Gemma 3 an absent key is
    # "none".
    window = m.number("attention.sliding_window", 4096 if m.kind == "gemma2" else 0)
    period = m.number("attention.sliding_window_pattern", _PERIODS[m.kind])
    theta, caps = shape["rope_theta"], (50.0, 30.0) if m.kind == "gemma2" else (0.0, 0.0)
    local_theta = theta if m.kind == "gemma2" else float(m.number("rope.freq_base_swa", 10000.0))
    layer_fields = {
        "attention_scale": _scale(m.kind, shape),
        "attention_softcap": shortest(m.number("attn_logit_softcapping", caps[0])),
        "logit_softcap": shortest(m.number("final_logit_softcapping", caps[1])),
    }
    # Every layer is global: no window, and one rotation.
    if not window or period == 1:
        return layer_fields
    if not 0 < period <= shape["layers"]:  # no layer is global
        return {**layer_fields, "window": window, "rope_theta": local_theta}
    # 0 says "as the global layers", and is how `ModelConfig` spells one rotation for all.
    other_theta = local_theta if local_theta != theta else 0.0
    return {
        **layer_fields,
        "window": window,
        "global_every": period,
        "local_rope_theta": other_theta,
    }


def _scale(kind: str, shape: dict[str, Any]) -> float:
    """The factor of the attention scores, 0 for the usual head_size ** -0.5."""
    wide = shape["layers"] == _WIDE_SCORES[kind]
    width = shape["d_model"] / shape["heads"] if wide else shape["head_size"]
    return 0.0 if width == shape["head_size"] else width**-0.5


def name_of(c: ModelConfig) -> str | None:
    """The architecture of a rotary decoder with scaled embeddings or norms after attention and MLP;
    None for any other model."""
    if llama.name_of(c) is None or not (c.branch_norm or c.embedding_scale != 1.0):
        return None
    if not c.branch_norm:
        return "gemma"
    return "gemma3" if c.query_norm else "gemma2"


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The metadata of a model. ValueError for a model without something that llama.cpp's layers
    always have: tied tables, and Gemma 2's soft cap of the scores."""
    kind = name_of(c)
    if not c.tied:
        raise ValueError(f"GGUF's {kind} architecture ties the head to the table; use --to=hf")
    values = write_shape(c, kind)
    if kind == "gemma":
        return values
    if kind == "gemma2" and not c.attention_softcap:
        raise ValueError("GGUF's gemma2 architecture caps attention scores; use --to=hf")
    if c.window:
        values[f"{kind}.attention.sliding_window"] = c.window
        values[f"{kind}.attention.sliding_window_pattern"] = c.global_every
    if kind == "gemma3":
        values[f"{kind}.rope.freq_base_swa"] = float(c.local_rope_theta or c.rope_theta)
    if c.attention_softcap:
        values[f"{kind}.attn_logit_softcapping"] = float(c.attention_softcap)
    if c.logit_softcap:
        values[f"{kind}.final_logit_softcapping"] = float(c.logit_softcap)
    return values


def rules(c: ModelConfig, name: str) -> tuple[Rule, ...]:
    """The tensors of LLaMA with rotary pairs in halves, and from Gemma 2 on two more norms a
    layer."""
    # Gemma's files keep Hugging Face's halves: only "llama" interleaves the pairs.
    return rotated_rules(c, "p h")


ARCHITECTURE = Architecture(
    names=("gemma", "gemma2", "gemma3"),
    name_of=name_of,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
)
