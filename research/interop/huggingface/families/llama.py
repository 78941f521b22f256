"""LLaMA and what grew out of it, in Hugging Face's names: LLaMA, SmolLM2, Mistral, Ministral,
Mixtral, Qwen 2 and 3."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from research.interop.huggingface.families.fields import (
    THEIR_ACTIVATIONS,
    activation,
    flag,
    integer,
    number,
    refuse,
)
from research.interop.huggingface.families.rope import read_rope, write_scaling
from research.interop.storage.family import Family
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig
from research.models.kinds import layer_windows, spell

SLIDING, FULL = "sliding_attention", "full_attention"
# Where config.json leaves a field out, transformers takes the default of the model's own class,
# which is not what a null means: a Mistral without "sliding_window" has a window of 4,096.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "ministral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "mixtral": {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6},
    "qwen2": {"num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": {"num_key_value_heads": 32, "sliding_window": 4096, "head_dim": 128},
}


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json of transformers 4 or 5 describes; `names`, the tensors, are not
    asked. ValueError for settings that our layers do not compute."""
    kind = values["model_type"]
    values = {**_DEFAULTS[kind], **values}
    theta, scaling = read_rope(values)
    refuse(values, partial_rotary_factor=1.0, pretraining_tp=1)
    biased = "all" if flag(values, "attention_bias", False) else "none"
    # The field is believed for Mixtral only: another class would not build experts for it.
    experts = integer(values, "num_local_experts", 8) if kind == "mixtral" else 0
    return ModelConfig(
        **read_sizes(values),
        **_read_windows(values),
        rope_theta=theta,
        rope_scaling=scaling,
        query_norm=kind == "qwen3",
        # Qwen 2 has these three biases without saying so, and no field that turns them off.
        attention_bias="qkv" if kind == "qwen2" else biased,
        mlp_bias=flag(values, "mlp_bias", False),
        tied=flag(values, "tie_word_embeddings", False),
        experts=experts,
        experts_per_token=integer(values, "num_experts_per_tok", 2) if experts else 2,
        router_loss=number(values, "router_aux_loss_coef", 0.001) if experts else 0.0,
    )


def read_sizes(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `ModelConfig` that LLaMA and its relatives have under the same names."""
    heads, d_model = integer(values, "num_attention_heads"), integer(values, "hidden_size")
    return {
        "kind": "decoder",
        "vocab_size": integer(values, "vocab_size"),
        "layers": integer(values, "num_hidden_layers"),
        "d_model": d_model,
        "heads": heads,
        "kv_heads": integer(values, "num_key_value_heads", heads),
        # Wider or narrower heads than d_model / heads are possible only where the file says so.
        "head_size": integer(values, "head_dim", max(1, d_model // heads)),
        "d_ff": integer(values, "intermediate_size"),
        "max_length": integer(values, "max_position_embeddings"),
        "norm_eps": number(values, "rms_norm_eps", 1e-6),
        "activation": activation(values, "hidden_act", "silu"),
        "init_std": number(values, "initializer_range", 0.02),
    }


def _read_windows(values: Mapping[str, Any]) -> dict[str, Any]:
    """The window of the layers, and which of them have it: fields of `ModelConfig`."""
    # Qwen alone has a switch, use_sliding_window, which is off by default, and a number of first
    # layers that attend to everything, max_window_layers. The class of LLaMA has no window: a
    # sliding_window in its config.json is ignored by transformers.
    kind, count = values["model_type"], integer(values, "num_hidden_layers")
    qwen = kind.startswith("qwen")
    if kind == "llama" or not flag(values, "use_sliding_window", not qwen):
        return {}
    types = values.get("layer_types")
    if qwen and types is None:
        first = values.get("max_window_layers", 28)  # transformers' default
        if type(first) is not int:
            raise ValueError(
                f"config.json has max_window_layers={first!r}; wanted a number of layers"
            )
        types = [FULL if layer < first else SLIDING for layer in range(count)]
    # Mistral's own class gives every layer the window, whatever the types say.
    if not qwen and kind != "ministral" and len(set(types or ())) > 1:
        raise ValueError(
            f"config.json mixes the layer types {', '.join(sorted(set(types)))}, which "
            f"{kind} does not have; set its model_type to ministral"
        )
    return windows_by_layer(integer(values, "sliding_window", 0), types, count)


def windows_by_layer(window: int, types: Sequence[str] | None, count: int) -> dict[str, Any]:
    """The fields of `ModelConfig` for a window that the layers of type "sliding_attention" have,
    all of them where no types are given. ValueError for other types, and for another number."""
    types = [SLIDING] * count if types is None else types
    unknown = [one for one in types if one not in (SLIDING, FULL)]
    if unknown or len(types) != count:
        raise ValueError(
            f"config.json has layer_types={types}; wanted {SLIDING} or {FULL} for each of its "
            f"{count} layers"
        )
    if not window or SLIDING not in types:
        return {}
    return {"window": window, **spell(["local" if one == SLIDING else "global" for one in types])}


def layer_types(c: ModelConfig) -> list[str]:
    """The value of `layer_types` in config.json."""
    return [SLIDING if window else FULL for window in layer_windows(c)]


def is_rotary_decoder(c: ModelConfig) -> bool:
    """True for a decoder with rotary positions and RMS norms, whether LLaMA's or Gemma's, but not
    for one with attention over latents."""
    rotary = c.kind == "decoder" and c.position == "rope" and not c.kv_latent
    return rotary and c.norm == "rms"


def serves(c: ModelConfig) -> bool:
    """True for LLaMA's layers, dense or with Mixtral's experts."""
    return has_layers(c) and not c.shared_d_ff and not c.attention_sinks


def has_layers(c: ModelConfig) -> bool:
    """True for a rotary decoder without the branch norms and scaled embeddings of Gemma."""
    return is_rotary_decoder(c) and not c.branch_norm and c.embedding_scale == 1.0


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json, in the spelling of transformers 4, which version 5 reads too."""
    # The plainest class that has all the model needs; `describe` then refuses what it lacks, such
    # as biases of a model with experts.
    if c.experts:
        kind, name = "mixtral", "MixtralForCausalLM"
    elif c.query_norm:
        kind, name = "qwen3", "Qwen3ForCausalLM"
    elif c.attention_bias == "qkv":
        kind, name = "qwen2", "Qwen2ForCausalLM"
    elif c.window and len(set(layer_windows(c))) > 1:
        kind, name = "ministral", "MinistralForCausalLM"
    elif c.window:
        kind, name = "mistral", "MistralForCausalLM"
    else:
        kind, name = "llama", "LlamaForCausalLM"
    values = {"architectures": [name], "model_type": kind, **write_sizes(c)}
    if kind in ("llama", "qwen3"):
        values |= {"attention_bias": c.attention_bias == "all"}
    if kind == "llama":
        values |= {"mlp_bias": c.mlp_bias}
    # Null is no window; absent would be the class's default.
    if kind in ("mistral", "mixtral", "ministral", "qwen2", "qwen3"):
        values |= {"sliding_window": c.window or None}
    if kind in ("qwen2", "qwen3"):
        values |= {"use_sliding_window": bool(c.window), "max_window_layers": 0}
    # No layer is exempt where nothing is said.
    if kind in ("ministral", "qwen2", "qwen3") and len(set(layer_windows(c))) > 1:
        values |= {"layer_types": layer_types(c)}
    if c.experts:
        experts = {"num_local_experts": c.experts, "num_experts_per_tok": c.experts_per_token}
        values |= {**experts, "router_aux_loss_coef": c.router_loss}
    return values


def write_sizes(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json that LLaMA and its relatives have under the same names."""
    return {
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_size,
        "hidden_act": THEIR_ACTIVATIONS[c.activation],
        "max_position_embeddings": c.max_length,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": write_scaling(c),
        "tie_word_embeddings": c.tied,
        "initializer_range": c.init_std,
        "attention_dropout": 0.0,
    }


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """The tensors of LlamaForCausalLM and its relatives, as rules that read both ways.

    torch stores the weight of a linear layer as [out, in], ours are [in, out]; the letters of each
    rule say which axes move, split and join.
    """
    layer, ours = "model.layers.{layer}", "layers"
    tensor_rules = [
        Rule("model.embed_tokens.weight", "embed/table", "V D -> V D"),
        Rule(f"{layer}.input_layernorm.weight", f"{ours}/attention_norm/scale", "D -> D"),
        Rule(f"{layer}.self_attn.q_proj.weight", f"{ours}/attention/query", "(N H) D -> D N H"),
        Rule(f"{layer}.self_attn.k_proj.weight", f"{ours}/attention/key", "(K H) D -> D K H"),
        Rule(f"{layer}.self_attn.v_proj.weight", f"{ours}/attention/value", "(K H) D -> D K H"),
        Rule(f"{layer}.self_attn.o_proj.weight", f"{ours}/attention/out", "D (N H) -> N H D"),
        Rule(f"{layer}.post_attention_layernorm.weight", f"{ours}/mlp_norm/scale", "D -> D"),
        Rule("model.norm.weight", "final_norm/scale", "D -> D"),
    ]
    if c.attention_bias != "none":
        tensor_rules += [
            Rule(f"{layer}.self_attn.q_proj.bias", f"{ours}/attention/query_bias", "(N H) -> N H"),
            Rule(f"{layer}.self_attn.k_proj.bias", f"{ours}/attention/key_bias", "(K H) -> K H"),
            Rule(f"{layer}.self_attn.v_proj.bias", f"{ours}/attention/value_bias", "(K H) -> K H"),
        ]
    if c.attention_bias == "all":
        tensor_rules += [
            Rule(f"{layer}.self_attn.o_proj.bias", f"{ours}/attention/out_bias", "D -> D")
        ]
    if c.query_norm:
        tensor_rules += [
            Rule(f"{layer}.self_attn.q_norm.weight", f"{ours}/attention/query_norm", "H -> H"),
            Rule(f"{layer}.self_attn.k_norm.weight", f"{ours}/attention/key_norm", "H -> H"),
        ]
    tensor_rules += _mlp_rules(c, layer, ours)
    # A tied model has no head of its own: its logits are products with the table.
    return (
        *tensor_rules,
        *([] if c.tied else [Rule("lm_head.weight", "head/table", "V D -> V D")]),
    )


def mlp_rules(theirs: str, ours: str, width: str) -> list[Rule]:
    """The three matrices of a feed-forward layer, whose width is this letter."""
    return [
        Rule(f"{theirs}.gate_proj.weight", f"{ours}/gate", f"{width} D -> D {width}"),
        Rule(f"{theirs}.up_proj.weight", f"{ours}/up", f"{width} D -> D {width}"),
        Rule(f"{theirs}.down_proj.weight", f"{ours}/down", f"D {width} -> {width} D"),
    ]


def behind_dense(
    c: ModelConfig, tensor_rules: Iterable[Rule], dense: Iterable[Rule]
) -> tuple[Rule, ...]:
    """The rules of a model whose first layers, our stack "dense", have no experts: those of its
    other layers, and `dense` for the feed-forward layers of the first."""
    if not c.dense_layers:
        return tuple(tensor_rules)
    behind, first = [], []
    for rule in tensor_rules:
        in_layer = "{layer}" in rule.name
        behind.append(replace(rule, offset=c.dense_layers) if in_layer else rule)
        if in_layer and ".mlp." not in rule.name:
            first.append(replace(rule, path=tuple(f"dense/{path}" for path in rule.paths)))
    return (*behind, *first, *dense)


def _mlp_rules(c: ModelConfig, layer: str, ours: str) -> list[Rule]:
    if c.experts:
        # One tensor an expert, as Mixtral was published; transformers 5 joins them when loading.
        # w1, w2, w3 are the gate, down and up projections.
        expert = f"{layer}.block_sparse_moe.experts.{{expert}}"
        return [
            Rule(f"{layer}.block_sparse_moe.gate.weight", f"{ours}/mlp/router", "E D -> D E"),
            Rule(f"{expert}.w1.weight", f"{ours}/mlp/gate", "F D -> D F"),
            Rule(f"{expert}.w2.weight", f"{ours}/mlp/down", "D F -> F D"),
            Rule(f"{expert}.w3.weight", f"{ours}/mlp/up", "F D -> D F"),
        ]
    matrices = mlp_rules(f"{layer}.mlp", f"{ours}/mlp", "F")
    if not c.mlp_bias:
        return matrices
    return [
        *matrices,
        Rule(f"{layer}.mlp.gate_proj.bias", f"{ours}/mlp/gate_bias", "F -> F"),
        Rule(f"{layer}.mlp.up_proj.bias", f"{ours}/mlp/up_bias", "F -> F"),
        Rule(f"{layer}.mlp.down_proj.bias", f"{ours}/mlp/down_bias", "D -> D"),
    ]


FAMILY = Family(
    model_types=("llama", "mistral", "ministral", "mixtral", "qwen2", "qwen3"),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    prefix="model.",
    # transformers 5's name of Mixtral's router.
    renames=((r"\.mlp\.gate\.", ".block_sparse_moe.gate."),),
    # Saved as a buffer by early releases of transformers.
    unused=((r".*\.rotary_emb\.inv_freq", "computed from rope_theta"),),
    # A file of a tied model may repeat the table as its head; it is compared and left out.
    copies=(("lm_head.weight", "embed/table"),),
)
