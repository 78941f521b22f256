"""Qwen's mixtures of experts, Qwen1.5-MoE and Qwen 2 (arXiv:2407.10671, section 2.2.2) and Qwen 3
(arXiv:2505.09388, section 2), in Hugging Face's names.

Qwen 2's and 3's layers with experts. Qwen 2 has one more that all tokens share, Qwen 3 norms of
queries and keys.
"""

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from research.interop.huggingface.families import llama
from research.interop.huggingface.families.fields import flag, index, integer, number, refuse
from research.interop.huggingface.families.rope import read_rope
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig

# Where config.json leaves a field out, transformers takes the default of the class.
_SHARED = {
    **{"norm_topk_prob": False, "sliding_window": 4096, "router_aux_loss_coef": 0.001},
    **{"decoder_sparse_step": 1, "mlp_only_layers": []},
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2_moe": {
        **_SHARED,
        **{"num_key_value_heads": 16, "num_experts": 60, "num_experts_per_tok": 4},
        **{"moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632},
        "intermediate_size": 5632,
    },
    "qwen3_moe": {
        **_SHARED,
        **{"num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8},
        **{"moe_intermediate_size": 768, "intermediate_size": 6144},
    },
}


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json describes; `names`, the tensors, are not asked. ValueError for
    settings that our layers do not compute, such as layers without experts among the others."""
    kind = values["model_type"]
    values = {**_DEFAULTS[kind], **values}
    theta, scaling = read_rope(values)
    refuse(values, partial_rotary_factor=1.0)
    sizes = llama.read_sizes(values)
    experts = _read_layers(values, sizes["layers"], sizes["d_ff"])
    sizes |= experts
    if kind == "qwen2_moe":
        sizes["attention_bias"] = "qkv" if flag(values, "qkv_bias", True) else "none"
        if experts:
            sizes["shared_d_ff"] = integer(values, "shared_expert_intermediate_size")
    else:
        sizes["attention_bias"] = "all" if flag(values, "attention_bias", False) else "none"
        sizes["query_norm"] = True
    return ModelConfig(
        **sizes,
        **_read_windows(values),
        rope_theta=theta,
        rope_scaling=scaling,
        tied=flag(values, "tie_word_embeddings", False),
    )


def _read_layers(values: Mapping[str, Any], layers: int, d_ff: int) -> dict[str, Any]:
    """The fields of `ModelConfig` for experts and for the first layers, which may have none; {} for
    a model without any. ValueError where other layers than the first have none."""
    step, named = integer(values, "decoder_sparse_step"), values["mlp_only_layers"] or []
    if not isinstance(named, list):
        raise ValueError(f"config.json has mlp_only_layers={named!r}; wanted numbers of layers")
    dense = [n for n in range(layers) if n in named or (n + 1) % step]
    if dense == list(range(layers)):
        return {}
    if dense != list(range(len(dense))):
        raise ValueError(
            f"config.json has mlp_only_layers={named} and decoder_sparse_step={step}, so that the "
            f"layers {dense} have no experts; only the first ones may have none"
        )
    return {
        "d_ff": integer(values, "moe_intermediate_size"),
        **({"dense_layers": len(dense), "dense_d_ff": d_ff} if dense else {}),
        **read_experts(values),
    }


def _read_windows(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `ModelConfig` for the window, which is off unless the file says otherwise."""
    if not flag(values, "use_sliding_window", False):
        return {}
    count, types = integer(values, "num_hidden_layers"), None
    if values["model_type"] == "qwen2_moe":
        # Its class alone has types of layers: of the first layers every second one has the window.
        first = index(values, "max_window_layers", 28)
        types = values.get("layer_types") or [
            llama.SLIDING if layer % 2 == 0 and layer < first else llama.FULL
            for layer in range(count)
        ]
    return llama.windows_by_layer(integer(values, "sliding_window", 0), types, count)


def read_experts(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `ModelConfig` for experts, as Qwen and OLMoE name them."""
    # transformers 5 writes Qwen 3's number under Mixtral's name.
    experts = values.get("num_local_experts") or values.get("num_experts")
    return {
        "experts": integer({"num_experts": experts}, "num_experts"),
        "experts_per_token": integer(values, "num_experts_per_tok"),
        "normalized_routes": flag(values, "norm_topk_prob", False),
        "router_loss": number(values, "router_aux_loss_coef"),
    }


def write_experts(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json that `read_experts` reads."""
    return {
        "num_experts": c.experts,
        "num_experts_per_tok": c.experts_per_token,
        "norm_topk_prob": c.normalized_routes,
        "router_aux_loss_coef": c.router_loss,
    }


def serves(c: ModelConfig) -> bool:
    """True for LLaMA's layers with experts and, beside these, one that is shared or norms of each
    head of queries and keys."""
    return (
        llama.has_layers(c)
        and c.experts > 0
        and (c.shared_d_ff > 0 or (c.query_norm and c.query_norm_over == "head"))
    )


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json, in the spelling of transformers 4, which version 5 reads too."""
    shared = c.shared_d_ff > 0
    kind, name = ("qwen2_moe", "Qwen2Moe") if shared else ("qwen3_moe", "Qwen3Moe")
    values = {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": kind,
        **llama.write_sizes(c),
        **write_experts(c),
        **{"moe_intermediate_size": c.d_ff, "intermediate_size": c.dense_d_ff or c.d_ff},
        **{"decoder_sparse_step": 1, "mlp_only_layers": list(range(c.dense_layers))},
        **{"use_sliding_window": bool(c.window), "sliding_window": c.window or None},
    }
    if not shared:
        return values | {"attention_bias": c.attention_bias == "all"}
    return values | {
        "qkv_bias": c.attention_bias == "qkv",
        "shared_expert_intermediate_size": c.shared_d_ff,
        "layer_types": llama.layer_types(c),
    }


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """LLaMA's tensors with the experts under names of their own."""
    if not c.experts:
        return llama.rules(c)
    layer, ours = "model.layers.{layer}.mlp", "layers/mlp"
    tensor_rules = expert_rules(c)
    if c.shared_d_ff:
        gate = Rule(f"{layer}.shared_expert_gate.weight", f"{ours}/shared_gate", "1 D -> D 1")
        shared = llama.mlp_rules(f"{layer}.shared_expert", f"{ours}/shared", "f")
        tensor_rules = (*tensor_rules, *shared, gate)
    return llama.behind_dense(c, tensor_rules, llama.mlp_rules(layer, "dense/layers/mlp", "d"))


def expert_rules(c: ModelConfig) -> tuple[Rule, ...]:
    """LLaMA's tensors, and one for each matrix of an expert, as Qwen and OLMoE name them."""
    layer, ours = "model.layers.{layer}.mlp", "layers/mlp"
    expert = f"{layer}.experts.{{expert}}"
    return (
        *(rule for rule in llama.rules(c) if ".block_sparse_moe." not in rule.name),
        Rule(f"{layer}.gate.weight", f"{ours}/router", "E D -> D E"),
        Rule(f"{expert}.gate_proj.weight", f"{ours}/gate", "F D -> D F"),
        Rule(f"{expert}.down_proj.weight", f"{ours}/down", "D F -> F D"),
        Rule(f"{expert}.up_proj.weight", f"{ours}/up", "F D -> D F"),
    )


FAMILY = replace(
    llama.FAMILY,
    model_types=("qwen2_moe", "qwen3_moe"),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    renames=(),
)
