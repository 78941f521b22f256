"""The tensors of decoders with rotary positions and RMS norms, in llama.cpp's names; the
architectures of this kind differ in which of them they have and in the order of rotary pairs.
"""

from collections.abc import Collection
from dataclasses import replace

from research.interop.storage.layout import Rule
from research.models.config import ModelConfig

_BLOCK, _OURS = "blk.{layer}", "layers"


def rotated_rules(c: ModelConfig, pair: str) -> tuple[Rule, ...]:
    """The tensors of a model whose rotary pairs are stored as `pair`: "h p", the two elements of a
    pair next to each other, or "p h", in two halves of the head as in our layers."""
    # p counts the two elements of a pair and h the H/2 pairs, so that "(h p) -> (p h)" is the
    # permutation. Values are not rotated and need none.
    attention = f"{_OURS}/attention"
    tensor_rules = [
        Rule("token_embd.weight", "embed/table", "V D -> V D"),
        Rule(f"{_BLOCK}.attn_q.weight", f"{attention}/query", f"(N {pair}) D -> D N (p h)"),
        Rule(f"{_BLOCK}.attn_k.weight", f"{attention}/key", f"(K {pair}) D -> D K (p h)"),
        Rule(f"{_BLOCK}.attn_v.weight", f"{attention}/value", "(K H) D -> D K H"),
        Rule(f"{_BLOCK}.attn_output.weight", f"{attention}/out", "D (N H) -> N H D"),
        Rule("output_norm.weight", "final_norm/scale", "D -> D"),
        *_norms(c),
        *_biases(c, pair),
        *_feed_forward(c),
    ]
    return (*tensor_rules, *([] if c.tied else [Rule("output.weight", "head/table", "V D -> V D")]))


def fused(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """Rules with queries, keys and values in one matrix, and the gate above the feed-forward
    layer's first matrix, as Phi 3's files have them."""
    apart = ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up")
    kept = [rule for rule in rules if rule.name.split(".")[-2] not in apart]
    rows = " | ".join(f"({axis} H) D -> D {axis} H" for axis in ("N", "K", "K"))
    attention = tuple(f"{_OURS}/attention/{name}" for name in ("query", "key", "value"))
    gates = (f"{_OURS}/mlp/gate", f"{_OURS}/mlp/up")
    return (
        *kept,
        Rule(f"{_BLOCK}.attn_qkv.weight", attention, rows),
        Rule(f"{_BLOCK}.ffn_up.weight", gates, "(2 F) D -> 2 D F"),
    )


def joined_experts(rules: tuple[Rule, ...], names: Collection[str]) -> tuple[Rule, ...]:
    """The rules for a file with tensors of these names, where later files of llama.cpp have the
    gates of all experts above their ups in one tensor, [E, 2 F, D]."""
    gate, up, both = (f"{_BLOCK}.ffn_{name}_exps.weight" for name in ("gate", "up", "gate_up"))
    if not any(name.endswith(both.removeprefix(_BLOCK)) for name in names):
        return rules
    by_name = {rule.name: rule for rule in rules}
    if gate not in by_name or up not in by_name:
        return rules
    paths = (*by_name[gate].paths, *by_name[up].paths)
    joined = replace(by_name[gate], name=both, path=paths, pattern="E (2 F) D -> 2 E D F")
    return (*(rule for rule in rules if rule.name not in (gate, up)), joined)


def _norms(c: ModelConfig) -> list[Rule]:
    norms = []
    if c.norm_before:
        norms += [("attn_norm", "attention_norm"), ("ffn_norm", "mlp_norm")]
    if c.branch_norm:
        norms += [("post_attention_norm", "attention_out_norm"), ("post_ffw_norm", "mlp_out_norm")]
    rules = [Rule(f"{_BLOCK}.{a}.weight", f"{_OURS}/{b}/scale", "D -> D") for a, b in norms]
    if not c.query_norm:
        return rules
    # Over all heads of a token the norm has a number for each; over one head all share theirs.
    wide = c.query_norm_over == "heads"
    for theirs, ours, axis in (("q", "query", "N"), ("k", "key", "K")):
        pattern = f"({axis} H) -> {axis} H" if wide else "H -> H"
        name = f"{_BLOCK}.attn_{theirs}_norm.weight"
        rules.append(Rule(name, f"{_OURS}/attention/{ours}_norm", pattern))
    return rules


def _biases(c: ModelConfig, pair: str) -> list[Rule]:
    attention, rules = f"{_OURS}/attention", []
    if c.attention_bias != "none":
        rules += [
            Rule(f"{_BLOCK}.attn_q.bias", f"{attention}/query_bias", f"(N {pair}) -> N (p h)"),
            Rule(f"{_BLOCK}.attn_k.bias", f"{attention}/key_bias", f"(K {pair}) -> K (p h)"),
            Rule(f"{_BLOCK}.attn_v.bias", f"{attention}/value_bias", "(K H) -> K H"),
        ]
    if c.attention_bias == "all":
        rules += [Rule(f"{_BLOCK}.attn_output.bias", f"{attention}/out_bias", "D -> D")]
    if c.mlp_bias and not c.experts:
        for name, axis in (("gate", "F"), ("up", "F"), ("down", "D")):
            path = f"{_OURS}/mlp/{name}_bias"
            rules += [Rule(f"{_BLOCK}.ffn_{name}.bias", path, f"{axis} -> {axis}")]
    return rules


def _feed_forward(c: ModelConfig) -> list[Rule]:
    mlp = f"{_OURS}/mlp"
    if not c.experts:
        return [
            Rule(f"{_BLOCK}.ffn_gate.weight", f"{mlp}/gate", "F D -> D F"),
            Rule(f"{_BLOCK}.ffn_up.weight", f"{mlp}/up", "F D -> D F"),
            Rule(f"{_BLOCK}.ffn_down.weight", f"{mlp}/down", "D F -> F D"),
        ]
    # All experts of a layer are one tensor here, where Hugging Face's folders have one for each.
    experts = [
        Rule(f"{_BLOCK}.ffn_gate_inp.weight", f"{mlp}/router", "E D -> D E"),
        Rule(f"{_BLOCK}.ffn_gate_exps.weight", f"{mlp}/gate", "E F D -> E D F"),
        Rule(f"{_BLOCK}.ffn_up_exps.weight", f"{mlp}/up", "E F D -> E D F"),
        Rule(f"{_BLOCK}.ffn_down_exps.weight", f"{mlp}/down", "E D F -> E F D"),
    ]
    if not c.shared_d_ff:
        return experts
    return [
        *experts,
        Rule(f"{_BLOCK}.ffn_gate_inp_shexp.weight", f"{mlp}/shared_gate", "D -> D 1"),
        Rule(f"{_BLOCK}.ffn_gate_shexp.weight", f"{mlp}/shared/gate", "f D -> D f"),
        Rule(f"{_BLOCK}.ffn_up_shexp.weight", f"{mlp}/shared/up", "f D -> D f"),
        Rule(f"{_BLOCK}.ffn_down_shexp.weight", f"{mlp}/shared/down", "D f -> f D"),
    ]
