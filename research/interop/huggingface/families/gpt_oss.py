"""gpt-oss (arXiv:2508.10925) in Hugging Face's names: LLaMA's layers with sinks, every second one
with a window, and experts that have biases and a gate of their own."""

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from research.interop.huggingface.families import llama
from research.interop.huggingface.families.fields import flag, integer, number, refuse
from research.interop.huggingface.families.rope import read_rope
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig

# Where config.json leaves a field out, transformers takes the default of the class.
_DEFAULTS: dict[str, Any] = {
    **{"num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128, "rms_norm_eps": 1e-5},
    **{"max_position_embeddings": 131072, "num_experts_per_tok": 4},
    **{"swiglu_alpha": 1.702, "swiglu_limit": 7.0, "router_aux_loss_coef": 0.001},
}
_YARN = {
    **{"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0},
    **{"truncate": False, "original_max_position_embeddings": 4096},
}
_THETA = 150000.0


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json describes; `names`, the tensors, are not asked. ValueError for
    settings that our layers do not compute."""
    values = {**_DEFAULTS, **values}
    # Its class scales positions where the file says nothing of them.
    if not (values.get("rope_scaling") or values.get("rope_parameters")):
        values["rope_scaling"] = _YARN
    theta, scaling = read_rope(values, _THETA)
    refuse(values, partial_rotary_factor=1.0, hidden_act="silu")
    count = integer(values, "num_hidden_layers")
    types = values.get("layer_types") or [
        llama.FULL if layer % 2 else llama.SLIDING for layer in range(count)
    ]
    return ModelConfig(
        **llama.read_sizes(values),
        **llama.windows_by_layer(integer(values, "sliding_window", 0), types, count),
        rope_theta=theta,
        rope_scaling=scaling,
        attention_bias="all" if flag(values, "attention_bias", True) else "none",
        attention_sinks=True,
        # transformers takes the number under either name.
        experts=integer(values, "num_local_experts", values.get("num_experts", 128)),
        experts_per_token=integer(values, "num_experts_per_tok"),
        mlp_bias=True,
        router_logit_bias=True,
        router_loss=number(values, "router_aux_loss_coef"),
        gate_slope=number(values, "swiglu_alpha"),
        gate_limit=number(values, "swiglu_limit"),
        up_offset=1.0,
        tied=flag(values, "tie_word_embeddings", False),
    )


def serves(c: ModelConfig) -> bool:
    """True for LLaMA's layers with sinks and experts, whose class always cuts what a gate
    multiplies."""
    return llama.has_layers(c) and c.experts > 0 and c.attention_sinks and c.gate_limit > 0


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json, in the spelling of transformers 4, which version 5 reads too."""
    sizes = llama.write_sizes(c)
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        **sizes,
        # Null would be the class's own scaling.
        "rope_scaling": sizes["rope_scaling"] or {"rope_type": "default"},
        "attention_bias": c.attention_bias == "all",
        "sliding_window": c.window or None,
        "layer_types": llama.layer_types(c),
        "num_local_experts": c.experts,
        "num_experts_per_tok": c.experts_per_token,
        "router_aux_loss_coef": c.router_loss,
        "swiglu_alpha": c.gate_slope,
        "swiglu_limit": c.gate_limit,
    }


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """LLaMA's tensors with sinks, and one tensor for all experts of a layer. Those of the gate and
    the other half alternate in it."""
    layer, ours = "model.layers.{layer}", "layers/mlp"
    experts, halves = f"{layer}.mlp.experts", (f"{ours}/gate", f"{ours}/up")
    biases = tuple(f"{half}_bias" for half in halves)
    return (
        *(rule for rule in llama.rules(c) if ".block_sparse_moe." not in rule.name),
        Rule(f"{layer}.self_attn.sinks", "layers/attention/sinks", "N -> N"),
        Rule(f"{layer}.mlp.router.weight", f"{ours}/router", "E D -> D E"),
        Rule(f"{layer}.mlp.router.bias", f"{ours}/router_logit_bias", "E -> E"),
        Rule(f"{experts}.gate_up_proj", halves, "E D (F 2) -> 2 E D F"),
        Rule(f"{experts}.gate_up_proj_bias", biases, "E (F 2) -> 2 E F"),
        Rule(f"{experts}.down_proj", f"{ours}/down", "E F D -> E F D"),
        Rule(f"{experts}.down_proj_bias", f"{ours}/down_bias", "E D -> E D"),
    )


FAMILY = replace(
    llama.FAMILY,
    model_types=("gpt_oss",),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    renames=(),
)
