"""The architecture deepseek2, DeepSeek-V2 and V3: attention over latents, first layers without
experts, experts in groups.

llama.cpp attends to the latents as to one key head, so a file has the products that make keys and
those that make values of latents apart, with one matrix a head. Files from before that have them in
one tensor, `attn_kv_b`, and are read too.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from research.interop.gguf.architecture import (
    Architecture,
    Metadata,
    read_biases,
    read_shape,
    shortest,
    write_shape,
)
from research.interop.gguf.decoder_rules import rotated_rules
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig
from research.models.latent import EPS
from research.ops.rope_scaling import RopeScaling

KIND = "deepseek2"
# Numbers of llama.cpp's enum llama_expert_gating_func_type; a file without one has shares of a
# softmax.
_ROUTERS = {"softmax": 1, "sigmoid": 2}
# llama.cpp knows models whose queries come from no latent by their number of layers alone, and
# reads no rank of others with so many.
_PLAIN_QUERIES = (26, 27)
_BLOCK = "blk.{layer}"
_ONE_TENSOR = "attn_kv_b"  # keys and values of latents, in older files


def read_config(m: Metadata) -> ModelConfig:
    """The model that a file's metadata describes."""
    # What the plain keys say are the sizes of latents, except in older files.
    head_size, value_size = (
        m.number(f"attention.{part}_length_mla", m.number(f"attention.{part}_length"))
        for part in ("key", "value")
    )
    # llama.cpp reads the one key head of latents, or as many key heads as heads.
    shape = read_shape(m, head_size=head_size)
    sizes = {
        "kv_heads": shape["heads"],
        "kv_latent": m.number("attention.kv_lora_rank"),
        "query_latent": m.number("attention.q_lora_rank", 0),
        "value_size": 0 if value_size == head_size else value_size,
    }
    return ModelConfig(**shape | read_biases(m) | sizes | _read_experts(m, shape))


def _read_experts(m: Metadata, shape: dict[str, Any]) -> dict[str, Any]:
    """The fields of `ModelConfig` for experts and for the first layers, which have none."""
    dense, experts = m.number("leading_dense_block_count", 0), m.number("expert_count", 0)
    if not experts or dense >= shape["layers"]:
        return {}
    size, number = m.number("expert_feed_forward_length"), m.number("expert_gating_func", 0)
    names = {0: "softmax"} | {n: name for name, n in _ROUTERS.items()}
    if number not in names:
        raise ValueError(f"the metadata has {KIND}.expert_gating_func={number}; wanted 1 or 2")
    groups = m.number("expert_group_count", 1) or 1
    grouped = {"route_groups": groups, "groups_per_token": m.number("expert_group_used_count", 1)}
    return {
        "d_ff": size,
        **({"dense_layers": dense, "dense_d_ff": shape["d_ff"]} if dense else {}),
        "experts": experts,
        "experts_per_token": m.number("expert_used_count"),
        "shared_d_ff": size * m.number("expert_shared_count"),
        "shared_gate": False,
        "route_scale": shortest(m.number("expert_weights_scale", 1.0)) or 1.0,
        "router": names[number],
        "normalized_routes": bool(m.values.get(f"{KIND}.expert_weights_norm", False)),
        **(grouped if groups > 1 else {}),
    }


def name_of(c: ModelConfig) -> str | None:
    """ "deepseek2" for a decoder with attention over latents."""
    return KIND if c.kind == "decoder" and c.kv_latent and c.norm == "rms" else None


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The metadata of a model. ValueError for what llama.cpp's layers do not have: experts without
    a shared one, and queries of another kind than it expects of so many layers."""
    if c.experts and (not c.shared_d_ff or c.shared_d_ff % c.d_ff):
        raise ValueError(
            f"GGUF's {KIND} architecture has whole shared experts, and this model has "
            f"shared_d_ff={c.shared_d_ff} beside d_ff={c.d_ff}; use --to=hf"
        )
    if c.query_latent and c.layers in _PLAIN_QUERIES:
        raise ValueError(
            f"llama.cpp takes a {KIND} of {c.layers} layers for one without latents of queries, "
            f"and this model has query_latent={c.query_latent}; use --to=hf"
        )
    _check_scaling(c.rope_scaling)
    values = write_shape(c, KIND) | {
        f"{KIND}.feed_forward_length": c.dense_d_ff or c.d_ff,
        f"{KIND}.attention.head_count_kv": 1,
        f"{KIND}.attention.key_length": c.kv_latent + c.rotary_size,
        f"{KIND}.attention.value_length": c.kv_latent,
        f"{KIND}.attention.key_length_mla": c.head_size,
        f"{KIND}.attention.value_length_mla": c.value_size or c.head_size,
        f"{KIND}.attention.kv_lora_rank": c.kv_latent,
        # 0 says that there is none; without the key llama.cpp refuses other numbers of layers.
        f"{KIND}.attention.q_lora_rank": c.query_latent,
        f"{KIND}.leading_dense_block_count": c.dense_layers if c.experts else c.layers,
        f"{KIND}.expert_feed_forward_length": c.d_ff,
        f"{KIND}.expert_shared_count": c.shared_d_ff // c.d_ff if c.experts else 0,
    }
    return values | (_write_experts(c) if c.experts else {})


def _write_experts(c: ModelConfig) -> dict[str, Any]:
    values = {
        "expert_count": c.experts,
        "expert_used_count": c.experts_per_token,
        "expert_weights_scale": float(c.route_scale),
        "expert_weights_norm": c.normalized_routes,
        "expert_gating_func": _ROUTERS[c.router],
    }
    if c.route_groups > 1:
        values |= {"expert_group_count": c.route_groups}
        values |= {"expert_group_used_count": c.groups_per_token}
    return {f"{KIND}.{name}": value for name, value in values.items()}


def _check_scaling(scaling: RopeScaling) -> None:
    """ValueError for YaRN with other factors than those of DeepSeek's two equal scales: where
    cosines and sines are multiplied, llama.cpp multiplies all scores by the square of that too."""
    if scaling.kind != "yarn" or scaling.factor == 1.0:
        return
    if scaling.multiplier != 1.0 or not scaling.score_scale:
        raise ValueError(
            f"GGUF's {KIND} architecture has YaRN with equal mscale and mscale_all_dim, and this "
            f"model multiplies its rotations by {scaling.multiplier:.6g} with mscale_all_dim="
            f"{scaling.score_scale}; use --to=hf"
        )


def rules(c: ModelConfig, name: str) -> tuple[Rule, ...]:
    """The tensors of a model; the first layers without experts are our stack "dense"."""
    # Of LLaMA's tensors those around the layers, their norms and the experts: attention is of
    # another kind.
    kept = [rule for rule in rotated_rules(c, "p h") if ".attn_" not in rule.name]
    kept = [rule for rule in kept if "ffn_gate_inp_shexp" not in rule.name]
    kept += [Rule(f"{_BLOCK}.attn_norm.weight", "layers/attention_norm/scale", "D -> D")]
    found = [*kept, *_attention_rules(c)]
    if c.experts and c.router == "sigmoid":
        found.append(Rule(f"{_BLOCK}.exp_probs_b.bias", "layers/mlp/router_bias", "E -> E"))
    if not c.dense_layers:
        return tuple(found)
    behind = [replace(r, offset=c.dense_layers) if "{layer}" in r.name else r for r in found]
    first = [
        replace(rule, path=f"dense/{rule.path}")
        for rule in found
        if "{layer}" in rule.name and "/mlp/" not in rule.path
    ]
    feed_forward = [
        Rule(f"{_BLOCK}.ffn_gate.weight", "dense/layers/mlp/gate", "d D -> D d"),
        Rule(f"{_BLOCK}.ffn_up.weight", "dense/layers/mlp/up", "d D -> D d"),
        Rule(f"{_BLOCK}.ffn_down.weight", "dense/layers/mlp/down", "D d -> d D"),
    ]
    kv = f"{_BLOCK}.attn_kv_a_mqa.weight"
    made = ("dense/layers/attention/kv_down", "dense/layers/attention/rotary_key")
    first = [replace(rule, path=made) if rule.name == kv else rule for rule in first]
    return (*behind, *first, *feed_forward)


def _attention_rules(c: ModelConfig) -> list[Rule]:
    ours = "layers/attention"
    query, inner = ("attn_q_b", "q") if c.query_latent else ("attn_q", "D")
    found = [
        # The last elements of a head are rotated, in neighbouring pairs.
        Rule(f"{_BLOCK}.{query}.weight", f"{ours}/query", f"(N H~) {inner} -> {inner} N H"),
        Rule(
            f"{_BLOCK}.attn_kv_a_mqa.weight",
            (f"{ours}/kv_down", f"{ours}/rotary_key"),
            "c D -> D c | r~ D -> D r",
        ),
        Rule(f"{_BLOCK}.attn_kv_a_norm.weight", f"{ours}/kv_down_norm", "c -> c"),
        Rule(f"{_BLOCK}.attn_k_b.weight", f"{ours}/key_up", "N c u -> c N u"),
        Rule(f"{_BLOCK}.attn_v_b.weight", f"{ours}/value_up", "N v c -> c N v"),
        Rule(f"{_BLOCK}.attn_output.weight", f"{ours}/out", "D (N v) -> N v D"),
    ]
    if c.query_latent:
        found += [
            Rule(f"{_BLOCK}.attn_q_a.weight", f"{ours}/query_down", "q D -> D q"),
            Rule(f"{_BLOCK}.attn_q_a_norm.weight", f"{ours}/query_down_norm", "q -> q"),
        ]
    return found


def layout(rules: tuple[Rule, ...], names: Collection[str]) -> tuple[Rule, ...]:
    """The rules for a file whose tensors have these names: in older ones the tensor that makes keys
    of latents makes values too."""
    if f"blk.0.{_ONE_TENSOR}.weight" not in names:
        return rules
    found = []
    for rule in rules:
        if ".attn_k_b." in rule.name:
            both = (rule.paths[0], rule.paths[0].replace("key_up", "value_up"))
            name = rule.name.replace("attn_k_b", _ONE_TENSOR)
            pattern = "(N u) c -> c N u | (N v) c -> c N v"
            found.append(replace(rule, name=name, path=both, pattern=pattern))
        elif ".attn_v_b." not in rule.name:
            found.append(rule)
    return tuple(found)


def notes(c: ModelConfig) -> list[str]:
    """Lines on how llama.cpp chooses groups of experts, and on its norms of latents."""
    lines = []
    if c.route_groups > 1 and c.router == "softmax":
        lines.append(
            "llama.cpp chooses groups by their two best experts, and this model by the best one: "
            "some tokens visit other experts there"
        )
    if c.norm_eps != EPS:
        lines.append(
            f"llama.cpp adds norm_eps={c.norm_eps} in the norms of latents too, and this model "
            f"{EPS}: the logits differ by that"
        )
    return lines


ARCHITECTURE = Architecture(
    names=(KIND,),
    name_of=name_of,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    notes=notes,
    layout=layout,
)
