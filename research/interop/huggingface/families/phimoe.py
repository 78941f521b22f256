"""Phi-3.5-MoE (arXiv:2404.14219) in Hugging Face's names: LLaMA's layers with layer norms, biases
and Mixtral's experts, which SparseMixer chooses (arXiv:2409.12136).

Texts beyond the original length have LongRoPE's long factors, as in the released code. transformers
5.24 takes the short ones for all texts: its class computes the frequencies without the length.
"""

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from research.interop.huggingface.families import llama
from research.interop.huggingface.families.fields import flag, integer, number, refuse
from research.interop.huggingface.families.rope import parameters, read_rope
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig
from research.ops.rope_scaling import RopeScaling

# Where config.json leaves a field out, transformers takes the default of the class.
_DEFAULTS: dict[str, Any] = {
    **{"num_key_value_heads": 8, "num_local_experts": 16, "num_experts_per_tok": 2},
    **{"max_position_embeddings": 131072, "rms_norm_eps": 1e-5},
    **{"router_aux_loss_coef": 0.001, "router_jitter_noise": 0.01},
}
_THETA = 1e6
# LongRoPE multiplies cosines and sines by these, in texts below and above the original length.
_SCALES = ("short_mscale", "long_mscale")


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json describes; `names`, the tensors, are not asked. ValueError for
    settings that our layers do not compute."""
    values = {**_DEFAULTS, **values}
    # Its code chooses two experts, whatever the file says.
    refuse(values, partial_rotary_factor=1.0, num_experts_per_tok=2, input_jitter_noise=0.0)
    theta, scaling = _read_rope(values)
    return ModelConfig(
        **llama.read_sizes(values),
        rope_theta=theta,
        rope_scaling=scaling,
        window=integer(values, "sliding_window", 0),
        norm="layer",
        attention_bias="all" if flag(values, "attention_bias", False) else "none",
        head_bias=flag(values, "lm_head_bias", False),
        tied=flag(values, "tie_word_embeddings", False),
        experts=integer(values, "num_local_experts"),
        experts_per_token=2,
        router="sparsemixer",
        router_jitter=number(values, "router_jitter_noise"),
        router_loss=number(values, "router_aux_loss_coef"),
    )


def _read_rope(values: Mapping[str, Any]) -> tuple[float, RopeScaling]:
    scaling = parameters(values)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return read_rope(values, _THETA)
    short, long = (number(scaling, name) for name in _SCALES)
    if kind != "longrope" or short != long:
        raise ValueError(
            f"config.json has rope_type={kind!r} with short_mscale={short:g} and "
            f"long_mscale={long:g}; longrope with equal scales is supported"
        )
    return read_rope({**values, "rope_scaling": {**scaling, "attention_factor": short}}, _THETA)


def serves(c: ModelConfig) -> bool:
    """True for a rotary decoder with layer norms and experts."""
    rotary = c.kind == "decoder" and c.position == "rope" and not c.kv_latent
    return rotary and c.norm == "layer" and c.experts > 0


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json, in the spelling of transformers 4, which version 5 reads too."""
    sizes = llama.write_sizes(c)
    if c.rope_scaling.kind == "longrope":
        # This class derives no scale from the lengths, so a model without one does not come back.
        scale = c.rope_scaling.attention_factor or 1.0
        scaling = {n: x for n, x in sizes["rope_scaling"].items() if n != "attention_factor"}
        scaling = {"type": scaling.pop("rope_type"), **scaling, **dict.fromkeys(_SCALES, scale)}
        sizes["rope_scaling"] = scaling
    return {
        "architectures": ["PhimoeForCausalLM"],
        "model_type": "phimoe",
        **sizes,
        "sliding_window": c.window or None,
        "attention_bias": c.attention_bias == "all",
        "lm_head_bias": c.head_bias,
        "num_local_experts": c.experts,
        "num_experts_per_tok": c.experts_per_token,
        "router_jitter_noise": c.router_jitter,
        "router_aux_loss_coef": c.router_loss,
    }


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """LLaMA's tensors with Mixtral's experts, the norms' biases and that of the head."""
    layer, ours = "model.layers.{layer}", "layers"
    tensor_rules = [
        *llama.rules(c),
        Rule(f"{layer}.input_layernorm.bias", f"{ours}/attention_norm/bias", "D -> D"),
        Rule(f"{layer}.post_attention_layernorm.bias", f"{ours}/mlp_norm/bias", "D -> D"),
        Rule("model.norm.bias", "final_norm/bias", "D -> D"),
    ]
    if c.head_bias:
        tensor_rules += [Rule("lm_head.bias", "head/output_bias", "V -> V")]
    return tuple(tensor_rules)


FAMILY = replace(
    llama.FAMILY,
    model_types=("phimoe",),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    # transformers 5's names of the router and the experts.
    renames=(
        (r"\.mlp\.(gate|router)\.", ".block_sparse_moe.gate."),
        (r"\.mlp\.experts\.", ".block_sparse_moe.experts."),
    ),
)
