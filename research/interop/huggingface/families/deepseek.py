"""DeepSeek-V2 (arXiv:2405.04434) and V3 (arXiv:2412.19437) in Hugging Face's names, and what was
made with their classes, such as Moonlight: attention over latents, first layers without experts,
experts in groups. V2 routes by a softmax, V3 by sigmoids and a bias.

Their weight of a balance loss, `aux_loss_alpha`, is not read: it is of one over each text alone.
"""

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from research.interop.huggingface.families import llama
from research.interop.huggingface.families.fields import flag, index, integer, number, refuse
from research.interop.huggingface.families.rope import parameters, read_rope
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig
from research.ops.rope_scaling import RopeScaling

# Where config.json leaves a field out, transformers takes the default of the class.
_SHARED = {"kv_lora_rank": 512, "q_lora_rank": 1536, "v_head_dim": 128}
_SHARED |= {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "deepseek_v2": {
        **_SHARED,
        **{"n_routed_experts": 64, "n_shared_experts": 2, "moe_intermediate_size": 1407},
        **{"first_k_dense_replace": 0, "routed_scaling_factor": 1.0, "topk_method": "greedy"},
    },
    "deepseek_v3": {
        **_SHARED,
        **{"n_routed_experts": 256, "n_shared_experts": 1, "moe_intermediate_size": 2048},
        **{"first_k_dense_replace": 3, "routed_scaling_factor": 2.5, "num_experts_per_tok": 8},
        **{"n_group": 8, "topk_group": 4, "norm_topk_prob": True},
    },
}
GREEDY, IN_GROUPS = "greedy", "group_limited_greedy"


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json describes; `names`, the tensors, are not asked. ValueError for
    settings that our layers do not compute, and where DeepSeek's own code and transformers differ,
    such as V2's mixing weights with norm_topk_prob."""
    kind = values["model_type"]
    values = {**_DEFAULTS[kind], **values}
    theta, scaling = read_rope(values)
    heads = integer(values, "num_attention_heads")
    # Every layer behind the first ones has experts, and every head keys of its own.
    refuse(values, moe_layer_freq=1, num_key_value_heads=heads, pretraining_tp=1, mlp_bias=False)
    refuse(values, rope_interleave=True)
    refuse(values, scoring_func="sigmoid" if kind == "deepseek_v3" else "softmax")
    rotated = integer(values, "qk_rope_head_dim")
    sizes = {
        **llama.read_sizes(
            {**values, "head_dim": integer(values, "qk_nope_head_dim") + rotated}
            | {"num_key_value_heads": heads}
        ),
        "rotary_size": rotated,
        "kv_latent": integer(values, "kv_lora_rank"),
        "query_latent": integer(values, "q_lora_rank", 0),
    }
    value_size = integer(values, "v_head_dim")
    return ModelConfig(
        **sizes
        | _read_experts(values, sizes["layers"], sizes["d_ff"])
        | {"value_size": 0 if value_size == sizes["head_size"] else value_size},
        rope_theta=theta,
        rope_scaling=_with_score_scale(values, scaling),
        attention_bias="all" if flag(values, "attention_bias", False) else "none",
        tied=flag(values, "tie_word_embeddings", False),
    )


def _with_score_scale(values: Mapping[str, Any], scaling: RopeScaling) -> RopeScaling:
    """The scaling with the factor of attention scores that these two classes read from it."""
    scale = number(parameters(values), "mscale_all_dim", 0.0)
    if not scale or scaling == RopeScaling():
        return scaling
    if scaling.kind != "yarn":
        raise ValueError(
            f"config.json has mscale_all_dim={scale} beside rope_type={scaling.kind!r}; only "
            "'yarn' is supported with it"
        )
    return replace(scaling, score_scale=scale)


def _read_experts(values: Mapping[str, Any], layers: int, d_ff: int) -> dict[str, Any]:
    """The fields of `ModelConfig` for experts and for the first layers, which have none."""
    dense = index(values, "first_k_dense_replace", 0)
    if dense >= layers:
        return {}
    size = integer(values, "moe_intermediate_size")
    fields = {
        "d_ff": size,
        **({"dense_layers": dense, "dense_d_ff": d_ff} if dense else {}),
        "experts": integer(values, "n_routed_experts"),
        "experts_per_token": integer(values, "num_experts_per_tok"),
        "shared_d_ff": size * integer(values, "n_shared_experts"),
        "shared_gate": False,
        "route_scale": number(values, "routed_scaling_factor"),
    }
    if values["model_type"] == "deepseek_v3":
        refuse(values, topk_method="noaux_tc")
        fields |= {
            "router": "sigmoid",
            "normalized_routes": flag(values, "norm_topk_prob", True),
            **_read_groups(values),
        }
        return fields
    method = values["topk_method"]
    if method not in (GREEDY, IN_GROUPS):
        raise ValueError(f"config.json has topk_method={method!r}; there are {GREEDY}, {IN_GROUPS}")
    # transformers never normalises, DeepSeek's own code does where the field says so.
    refuse(values, norm_topk_prob=False)
    groups = _read_groups(values) if method == IN_GROUPS else {}
    return fields | {"normalized_routes": False, **groups}


def _read_groups(values: Mapping[str, Any]) -> dict[str, int]:
    groups, visited = integer(values, "n_group"), integer(values, "topk_group")
    if groups == 1:
        return {}
    return {"route_groups": groups, "groups_per_token": visited}


def serves(c: ModelConfig) -> bool:
    """True for a decoder with attention over latents."""
    return c.kv_latent > 0 and c.norm == "rms"


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json, in the spelling of transformers 4, which version 5 reads too."""
    third = c.router == "sigmoid"
    kind, name = ("deepseek_v3", "DeepseekV3") if third else ("deepseek_v2", "DeepseekV2")
    values = {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": kind,
        **llama.write_sizes(c),
        "intermediate_size": c.dense_d_ff or c.d_ff,
        "rope_scaling": _write_scaling(c),
        "kv_lora_rank": c.kv_latent,
        "q_lora_rank": c.query_latent or None,
        "qk_nope_head_dim": c.head_size - c.rotary_size,
        "qk_rope_head_dim": c.rotary_size,
        "v_head_dim": c.value_size or c.head_size,
        "attention_bias": c.attention_bias == "all",
        # Where no layer has experts, all are first ones.
        "first_k_dense_replace": c.dense_layers if c.experts else c.layers,
    }
    # These two classes have it from the sizes above.
    del values["head_dim"]
    if third:
        values |= {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "rope_interleave": True}
        values |= {"num_nextn_predict_layers": 0}
    else:
        values |= {"topk_method": IN_GROUPS if c.route_groups > 1 else GREEDY}
    return values | (_write_experts(c) if c.experts else {})


def _write_experts(c: ModelConfig) -> dict[str, Any]:
    return {
        "moe_intermediate_size": c.d_ff,
        "n_routed_experts": c.experts,
        "num_experts_per_tok": c.experts_per_token,
        "n_shared_experts": c.shared_d_ff // c.d_ff,
        "n_group": c.route_groups,
        "topk_group": c.groups_per_token,
        "norm_topk_prob": c.normalized_routes,
        "routed_scaling_factor": c.route_scale,
    }


def _write_scaling(c: ModelConfig) -> dict[str, Any] | None:
    values, scale = llama.write_sizes(c)["rope_scaling"], c.rope_scaling.score_scale
    if not scale:
        return values
    values |= {"mscale_all_dim": scale}
    # In DeepSeek's spelling, which its own code reads, a factor of 1 are two equal scales.
    if values.get("attention_factor") == 1.0:
        values |= {"mscale": scale}
        del values["attention_factor"]
    return values


def _later_layers(values: Mapping[str, Any], c: ModelConfig) -> tuple[tuple[str, str], ...]:
    """The tensors of modules that predict further tokens: V3's lie behind the last layer, under the
    numbers that follow."""
    count = index(values, "num_nextn_predict_layers", 1)
    numbers = "|".join(str(c.layers + n) for n in range(min(count, 16)))
    reason = "predicts the token after the next, which no layer here does"
    return ((rf"model\.layers\.(?:{numbers})\..*", reason),) if numbers else ()


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """The tensors of DeepseekV3ForCausalLM, whose first layers are our stack "dense"."""
    layer = "model.layers.{layer}.mlp"
    own = [
        rule
        for rule in llama.rules(c)
        if not rule.name.startswith("model.layers.") or "layernorm" in rule.name
    ]
    tensor_rules = [*own, *_attention_rules(c)]
    if not c.experts:
        return (*tensor_rules, *llama.mlp_rules(layer, "layers/mlp", "F"))
    experts = f"{layer}.experts.{{expert}}"
    tensor_rules += [
        Rule(f"{layer}.gate.weight", "layers/mlp/router", "E D -> D E"),
        *llama.mlp_rules(experts, "layers/mlp", "F"),
        *llama.mlp_rules(f"{layer}.shared_experts", "layers/mlp/shared", "f"),
    ]
    if c.router == "sigmoid":
        bias = f"{layer}.gate.e_score_correction_bias"
        tensor_rules += [Rule(bias, "layers/mlp/router_bias", "E -> E")]
    return llama.behind_dense(c, tensor_rules, llama.mlp_rules(layer, "dense/layers/mlp", "d"))


def _attention_rules(c: ModelConfig) -> list[Rule]:
    theirs, ours = "model.layers.{layer}.self_attn", "layers/attention"
    query, inner = ("q_b_proj", "q") if c.query_latent else ("q_proj", "D")
    kv = f"{theirs}.kv_a_proj_with_mqa"
    keys_values = (f"{ours}/key_up", f"{ours}/value_up")
    made = (f"{ours}/kv_down", f"{ours}/rotary_key")
    found = [
        Rule(f"{theirs}.{query}.weight", f"{ours}/query", f"(N H~) {inner} -> {inner} N H"),
        Rule(f"{kv}.weight", made, "c D -> D c | r~ D -> D r"),
        Rule(f"{theirs}.kv_a_layernorm.weight", f"{ours}/kv_down_norm", "c -> c"),
        Rule(f"{theirs}.kv_b_proj.weight", keys_values, "(N u) c -> c N u | (N v) c -> c N v"),
        Rule(f"{theirs}.o_proj.weight", f"{ours}/out", "D (N v) -> N v D"),
    ]
    biased = c.attention_bias == "all"
    if c.query_latent:
        found += [
            Rule(f"{theirs}.q_a_proj.weight", f"{ours}/query_down", "q D -> D q"),
            Rule(f"{theirs}.q_a_layernorm.weight", f"{ours}/query_down_norm", "q -> q"),
        ]
    if c.query_latent and biased:
        found += [Rule(f"{theirs}.q_a_proj.bias", f"{ours}/query_down_bias", "q -> q")]
    if biased:
        biases = tuple(f"{path}_bias" for path in made)
        found += [
            Rule(f"{kv}.bias", biases, "c -> c | r~ -> r"),
            Rule(f"{theirs}.o_proj.bias", f"{ours}/out_bias", "D -> D"),
        ]
    return found


FAMILY = replace(
    llama.FAMILY,
    model_types=("deepseek_v2", "deepseek_v3"),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    renames=(),
    further=_later_layers,
)
