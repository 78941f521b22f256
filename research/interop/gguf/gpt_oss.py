"""The architecture gpt-oss: experts with biases and a gate of their own, sinks, and a window in
every second layer."""

from typing import Any

from research.interop.gguf import rope_keys
from research.interop.gguf.architecture import (
    Architecture,
    Metadata,
    check_untied,
    read_shape,
    write_shape,
)
from research.interop.gguf.decoder_rules import rotated_rules
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig

KIND = "gpt-oss"
# llama.cpp has no keys for these.
_GATE = {"gate_slope": 1.702, "gate_limit": 7.0, "up_offset": 1.0}
_GLOBAL_EVERY = 2


def read_config(m: Metadata) -> ModelConfig:
    """The model that a file's metadata describes."""
    shape, window = read_shape(m), m.number("attention.sliding_window", 0)
    shape["d_ff"] = m.number("expert_feed_forward_length", shape["d_ff"])
    layers = {"window": window, "global_every": _GLOBAL_EVERY} if window else {}
    return ModelConfig(
        **shape,
        **layers,
        **_GATE,
        rope_scaling=rope_keys.read_keys(m),
        attention_bias="all",
        attention_sinks=True,
        experts=m.number("expert_count"),
        experts_per_token=m.number("expert_used_count"),
        mlp_bias=True,
        router_logit_bias=True,
    )


def name_of(c: ModelConfig) -> str | None:
    """ "gpt-oss" for a mixture of experts with sinks."""
    rotary = c.kind == "decoder" and c.position == "rope" and c.norm == "rms"
    return KIND if rotary and c.experts and c.attention_sinks else None


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The metadata of a model. ValueError for tied tables."""
    check_untied(c, KIND)
    return write_shape(c, KIND) | {
        f"{KIND}.expert_count": c.experts,
        f"{KIND}.expert_used_count": c.experts_per_token,
        f"{KIND}.expert_feed_forward_length": c.d_ff,
        f"{KIND}.attention.sliding_window": c.window,
    }


def rules(c: ModelConfig, name: str) -> tuple[Rule, ...]:
    """The tensors of a mixture of experts, with biases and sinks; the norm before the experts has
    the name of one behind attention."""
    block, mlp = "blk.{layer}", "layers/mlp"
    kept = [rule for rule in rotated_rules(c, "p h") if ".ffn_norm." not in rule.name]
    return (
        *kept,
        Rule(f"{block}.post_attention_norm.weight", "layers/mlp_norm/scale", "D -> D"),
        Rule(f"{block}.attn_sinks.weight", "layers/attention/sinks", "N -> N"),
        Rule(f"{block}.ffn_gate_inp.bias", f"{mlp}/router_logit_bias", "E -> E"),
        Rule(f"{block}.ffn_gate_exps.bias", f"{mlp}/gate_bias", "E F -> E F"),
        Rule(f"{block}.ffn_up_exps.bias", f"{mlp}/up_bias", "E F -> E F"),
        Rule(f"{block}.ffn_down_exps.bias", f"{mlp}/down_bias", "E D -> E D"),
    )


def notes(c: ModelConfig) -> list[str]:
    """A line on the bounds of YaRN's ramp, which llama.cpp rounds."""
    if c.rope_scaling.kind != "yarn" or c.rope_scaling.truncate:
        return []
    return [
        "llama.cpp rounds the bounds of YaRN's ramp to whole rotary pairs, and this model does "
        "not: the logits differ by that"
    ]


ARCHITECTURE = Architecture(
    names=(KIND,),
    name_of=name_of,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    notes=notes,
)
