"""The architecture modern-bert: ModernBERT as a model of sentence embeddings, its body alone."""

from dataclasses import replace
from typing import Any

from research.interop.gguf.architecture import (
    Architecture,
    Metadata,
    check_square,
    gelu_note,
    read_shape,
    write_shape,
)
from research.interop.storage.layout import Rule, norm_rules
from research.models.config import ModelConfig
from research.models.kinds import layer_kind, spell
from research.ops.rope_scaling import RopeScaling

KIND = "modern-bert"
_PERIOD = 3  # every so many layers one is global, in a file that does not say
# llama.cpp's names of what the gate goes through, of which "gelu" is that of a file without one.
_ACTIVATIONS = {"gelu": "gelu", "geglu": "gelu", "silu": "silu", "swish": "silu", "swiglu": "silu"}
# Of the heads that an encoder without any may get, as `research.models.config.Heads` has them.
_HEADS = {"pooling": "first", "pooler_layer": "head", "transform_bias": False}


def read_config(m: Metadata) -> ModelConfig:
    """The model that a file's metadata describes."""
    act = m.values.get(f"{KIND}.hidden_activation", "gelu")
    if act not in _ACTIVATIONS:
        raise ValueError(
            f"the metadata has {KIND}.hidden_activation={act!r}; there are "
            f"{', '.join(_ACTIVATIONS)}"
        )
    shape = read_shape(m, kind="encoder", norm="layer")
    return ModelConfig(
        **shape | _read_layers(m, shape),
        **_HEADS,
        norm_bias=False,
        embedding_norm=True,
        first_norm="blk.0.attn_norm.weight" in m.tensors,
        activation=_ACTIVATIONS[act],
    )


def _read_layers(m: Metadata, shape: dict[str, Any]) -> dict[str, Any]:
    """The fields on kinds of layers, their window and their rotations."""
    # Counts both sides, and not the token itself.
    window = m.number("attention.sliding_window", 0) // 2
    period = m.number("attention.sliding_window_pattern", _PERIOD)
    if not window or not period:
        return {}
    kinds = ["local" if n % period else "global" for n in range(shape["layers"])]
    if "local" not in kinds:
        return {}
    theta, local = shape["rope_theta"], float(m.number("rope.freq_base_swa", shape["rope_theta"]))
    return {"window": window + 1, "local_rope_theta": 0.0 if local == theta else local} | spell(
        kinds
    )


def name_of(c: ModelConfig) -> str | None:
    """ "modern-bert" for an encoder with rotary positions and a norm of the embeddings."""
    rotary = c.kind == "encoder" and c.position == "rope" and c.embedding_norm
    return KIND if rotary else None


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The metadata of a model. ValueError for layers that follow no period from a global one on,
    and for scaled positions beside a window, which llama.cpp scales in every layer."""
    check_square(c, KIND)
    values = write_shape(c, KIND) | {f"{KIND}.attention.causal": False}
    if c.activation != "gelu":
        values |= {f"{KIND}.hidden_activation": c.activation}
    kinds = [layer_kind(c, n) if c.window else "global" for n in range(c.layers)]
    if "local" not in kinds:
        return values
    if c.rope_scaling != RopeScaling():
        raise ValueError(
            f"GGUF's {KIND} architecture scales the positions of all layers, and this model those "
            "of its global ones; use --to=hf"
        )
    return values | {
        f"{KIND}.attention.sliding_window": 2 * (c.window - 1),
        f"{KIND}.attention.sliding_window_pattern": _period(kinds),
        f"{KIND}.rope.freq_base_swa": float(c.local_rope_theta or c.rope_theta),
    }


def _period(kinds: list[str]) -> int:
    for period in range(2, len(kinds) + 1):
        if kinds == ["local" if n % period else "global" for n in range(len(kinds))]:
            return period
    raise ValueError(
        f"GGUF's {KIND} architecture has global layers in a period from the first on, and this "
        f"model has {', '.join(kinds)}; use --to=hf"
    )


def rules(c: ModelConfig, name: str) -> tuple[Rule, ...]:
    """The tensors of an encoder's body; one half of ffn_up goes through the activation, and the
    second half is what it gates."""
    block, ours = "blk.{layer}", "layers"
    qkv = tuple(f"{ours}/attention/{role}" for role in ("query", "key", "value"))
    first = 0 if c.first_norm else 1  # the first layer may have no norm before its attention
    return (
        Rule("token_embd.weight", "embed/table", "V D -> V D"),
        Rule(f"{block}.attn_qkv.weight", qkv, "(3 N H) D -> 3 D N H"),
        Rule(f"{block}.attn_output.weight", f"{ours}/attention/out", "D (N H) -> N H D"),
        Rule(f"{block}.ffn_up.weight", (f"{ours}/mlp/gate", f"{ours}/mlp/up"), "(2 F) D -> 2 D F"),
        Rule(f"{block}.ffn_down.weight", f"{ours}/mlp/down", "D F -> F D"),
        *norm_rules("token_embd_norm", "embed/norm", bias=False),
        *norm_rules(f"{block}.attn_norm", f"{ours}/attention_norm", bias=False, first=first),
        *norm_rules(f"{block}.ffn_norm", f"{ours}/mlp_norm", bias=False),
        *norm_rules("output_norm", "final_norm", bias=False),
    )


def bare(c: ModelConfig) -> ModelConfig:
    """An encoder as a file has it, without heads."""
    return replace(c, pooler=False, mlm_head=False, labels=0, labels_over="text", **_HEADS)


ARCHITECTURE = Architecture(
    names=(KIND,),
    name_of=name_of,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    notes=gelu_note,
)
