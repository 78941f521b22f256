"""The architectures gpt2 and gptneox: decoders with layer norms and biases, whose queries, keys and
values are one matrix."""

from dataclasses import replace
from typing import Any

from research.interop.gguf.architecture import (
    Architecture,
    Metadata,
    check_square,
    check_untied,
    gelu_note,
    read_shape,
    write_shape,
)
from research.interop.storage.layout import Rule, norm_rules
from research.models.config import ModelConfig

# Of a gptneox whose GELU is the approximation that llama.cpp computes anyhow (GPT-NeoX-20B); it
# reads this key of other architectures, which have Hugging Face's names there.
_HIDDEN, _TANH = "gptneox.hidden_activation", "gelu_pytorch_tanh"


def _read_gpt2(m: Metadata) -> ModelConfig:
    return ModelConfig(
        **read_shape(m, norm="layer"),
        position="learned",
        activation="gelu_tanh",
        gated=False,
        attention_bias="all",
        mlp_bias=True,
    )


def _name_gpt2(c: ModelConfig) -> str | None:
    plain = c.kind == "decoder" and c.norm == "layer" and c.position == "learned"
    return "gpt2" if plain and not c.position_offset else None


def _write_gpt2(c: ModelConfig) -> dict[str, Any]:
    check_square(c, "gpt2")
    return {k: v for k, v in write_shape(c, "gpt2").items() if ".rope." not in k}


def _read_gptneox(m: Metadata) -> ModelConfig:
    return ModelConfig(
        **read_shape(m, norm="layer"),
        parallel=bool(m.values.get("gptneox.use_parallel_residual", True)),
        activation="gelu_tanh" if m.values.get(_HIDDEN) == _TANH else "gelu",
        gated=False,
        attention_bias="all",
        mlp_bias=True,
    )


def _name_gptneox(c: ModelConfig) -> str | None:
    plain = c.kind == "decoder" and c.norm == "layer" and c.position == "rope"
    return "gptneox" if plain and not c.experts else None


def _write_gptneox(c: ModelConfig) -> dict[str, Any]:
    check_square(c, "gptneox")
    check_untied(c, "gptneox")
    values = write_shape(c, "gptneox") | {"gptneox.use_parallel_residual": c.parallel}
    return values | ({_HIDDEN: _TANH} if c.activation == "gelu_tanh" else {})


def rules(c: ModelConfig, name: str) -> tuple[Rule, ...]:
    """The tensors of both: rotary pairs are in halves, as in our layers."""
    block, ours = "blk.{layer}", "layers"
    qkv = tuple(f"{ours}/attention/{part}" for part in ("query", "key", "value"))
    biases = tuple(f"{path}_bias" for path in qkv)
    found = [
        Rule("token_embd.weight", "embed/table", "V D -> V D"),
        Rule(f"{block}.attn_qkv.weight", qkv, "(3 N H) D -> 3 D N H"),
        Rule(f"{block}.attn_qkv.bias", biases, "(3 N H) -> 3 N H"),
        Rule(f"{block}.attn_output.weight", f"{ours}/attention/out", "D (N H) -> N H D"),
        Rule(f"{block}.attn_output.bias", f"{ours}/attention/out_bias", "D -> D"),
        Rule(f"{block}.ffn_up.weight", f"{ours}/mlp/up", "F D -> D F"),
        Rule(f"{block}.ffn_up.bias", f"{ours}/mlp/up_bias", "F -> F"),
        Rule(f"{block}.ffn_down.weight", f"{ours}/mlp/down", "D F -> F D"),
        Rule(f"{block}.ffn_down.bias", f"{ours}/mlp/down_bias", "D -> D"),
        *norm_rules(f"{block}.attn_norm", f"{ours}/attention_norm"),
        *norm_rules(f"{block}.ffn_norm", f"{ours}/mlp_norm"),
        *norm_rules("output_norm", "final_norm"),
    ]
    if name == "gpt2":
        found.append(Rule("position_embd.weight", "embed/positions", "P D -> P D"))
    return (*found, *([] if c.tied else [Rule("output.weight", "head/table", "V D -> V D")]))


GPT2 = Architecture(
    names=("gpt2",),
    name_of=_name_gpt2,
    read_config=_read_gpt2,
    write_config=_write_gpt2,
    rules=rules,
)
GPT_NEOX = replace(
    GPT2,
    names=("gptneox",),
    name_of=_name_gptneox,
    read_config=_read_gptneox,
    write_config=_write_gptneox,
    notes=gelu_note,
)
