"""The architecture t5: T5, its release 1.1, and mT5, encoder and decoder in one file."""

from collections.abc import Mapping
from typing import Any

from research.interop.gguf.architecture import (
    Architecture,
    Metadata,
    read_shape,
    write_shape,
)
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig
from research.models.embedding import BUCKETS

KIND = "t5"
START = f"{KIND}.decoder_start_token_id"
# llama.cpp gives a gated layer one activation and a plain one the other.
_ACTIVATIONS = {True: "gelu_tanh", False: "relu"}


def read_config(m: Metadata) -> ModelConfig:
    """The model that a file's metadata describes."""
    buckets = m.number("attention.relative_buckets_count")
    if buckets != BUCKETS:
        raise ValueError(
            f"the metadata has {KIND}.attention.relative_buckets_count={buckets}; only {BUCKETS} "
            "is supported"
        )
    shape = read_shape(m, kind="encoder_decoder")
    gated = "enc.blk.0.ffn_gate.weight" in m.tensors
    return ModelConfig(
        **shape
        | {
            "layers": m.number("decoder_block_count", shape["layers"]),
            "encoder_layers": shape["layers"],
        },
        position="relative",
        activation=_ACTIVATIONS[gated],
        gated=gated,
        attention_scale=1.0,
        # Of the published models those with tied tables scale the states before the head.
        head_scale=shape["d_model"] ** -0.5 if shape["tied"] else 1.0,
        decoder_start=_start(m.values),
    )


def _start(values: Mapping[str, Any]) -> str:
    first = values.get(START)
    end, pad = (values.get(f"tokenizer.ggml.{role}_token_id") for role in ("eos", "padding"))
    return "end" if first is not None and first == end and first != pad else "pad"


def name_of(c: ModelConfig) -> str | None:
    """ "t5" for an encoder-decoder with relative positions."""
    return KIND if c.kind == "encoder_decoder" and c.position == "relative" else None


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The metadata of a model."""
    values = {key: x for key, x in write_shape(c, KIND).items() if ".rope." not in key}
    return values | {
        f"{KIND}.block_count": c.encoder_layers,
        f"{KIND}.decoder_block_count": c.layers,
        f"{KIND}.attention.relative_buckets_count": BUCKETS,
        START: 0,  # T5's padding; a checkpoint with ids of its own has its own here
    }


def rules(c: ModelConfig, name: str) -> tuple[Rule, ...]:
    """The tensors of both stacks; of each the first layer alone has offsets by distance."""
    found = [Rule("token_embd.weight", "embed/table", "V D -> V D")]
    for side, ours in (("enc", "encoder/"), ("dec", "")):
        block, layers = f"{side}.blk.{{layer}}", f"{ours}layers"
        found += _attention(f"{block}.attn", f"{layers}/attention")
        norms = [("attn_norm", "attention_norm"), ("ffn_norm", "mlp_norm")]
        if side == "dec":
            found += _attention(f"{block}.cross_attn", f"{layers}/cross")
            norms += [("cross_attn_norm", "cross_norm")]
        found += [
            Rule(f"{block}.{theirs}.weight", f"{layers}/{norm}/scale", "D -> D")
            for theirs, norm in norms
        ]
        for role in ("gate", "up") if c.gated else ("up",):
            found.append(Rule(f"{block}.ffn_{role}.weight", f"{layers}/mlp/{role}", "F D -> D F"))
        found += [
            Rule(f"{block}.ffn_down.weight", f"{layers}/mlp/down", "D F -> F D"),
            Rule(f"{side}.blk.0.attn_rel_b.weight", f"{ours}relative/table", "U N -> U N"),
            Rule(f"{side}.output_norm.weight", f"{ours}final_norm/scale", "D -> D"),
        ]
    return (*found, *([] if c.tied else [Rule("output.weight", "head/table", "V D -> V D")]))


def _attention(theirs: str, ours: str) -> list[Rule]:
    pairs = (("q", "query"), ("k", "key"), ("v", "value"))
    inward = [
        Rule(f"{theirs}_{letter}.weight", f"{ours}/{role}", "(N H) D -> D N H")
        for letter, role in pairs
    ]
    return [*inward, Rule(f"{theirs}_o.weight", f"{ours}/out", "D (N H) -> N H D")]


def notes(c: ModelConfig) -> list[str]:
    """A line where the states are scaled before the head, which llama.cpp does not do."""
    if c.head_scale == 1.0:
        return []
    return [
        f"llama.cpp does not scale the states before the head: its logits are {1 / c.head_scale:g} "
        "times this model's, with the same order; divide its temperature by as much"
    ]


ARCHITECTURE = Architecture(
    names=(KIND,),
    name_of=name_of,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    notes=notes,
)
