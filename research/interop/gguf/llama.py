"""The architectures llama (LLaMA, Mistral, Mixtral, SmolLM2), qwen2 and qwen3.

llama.cpp rotates neighbouring elements (2i, 2i + 1) of a head under "llama", and elements
(i, i + H/2) under the others. Hugging Face's folders and our layers have the second order, so the
rows of queries and keys are permuted between the formats for "llama" alone.
"""

from typing import Any

from research.interop.gguf.architecture import Architecture, Metadata, read_shape, write_shape
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig


def read_config(m: Metadata) -> ModelConfig:
    """The model that a file's metadata describes."""
    experts, shape = m.number("expert_count", 0), read_shape(m)
    if m.kind == "llama" and shape["rotary_size"]:
        raise ValueError("the architecture llama rotates whole heads, and the file says a part")
    return ModelConfig(
        **shape,
        window=m.number("attention.sliding_window", 0),
        query_norm=m.kind == "qwen3",
        attention_bias=_read_bias(m),
        experts=experts,
        **({"experts_per_token": m.number("expert_used_count", 2)} if experts else {}),
    )


def _read_bias(m: Metadata) -> str:
    # No key says it; llama.cpp takes each bias that the file has.
    if "blk.0.attn_q.bias" not in m.tensors:
        return "none"
    return "all" if "blk.0.attn_output.bias" in m.tensors else "qkv"


def name_of(c: ModelConfig) -> str | None:
    """The architecture of a decoder with rotary positions and RMS norms; None for others, such
    as one with a shared expert or without norms before attention and MLP."""
    if c.kind != "decoder" or c.position != "rope" or c.norm != "rms":
        return None
    if c.shared_d_ff or c.kv_latent or not c.norm_before:
        return None
    if c.query_norm:
        return "qwen3"
    return "qwen2" if c.attention_bias == "qkv" else "llama"


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The metadata of a model. ValueError for a window or experts under a Qwen architecture, which
    has neither in llama.cpp."""
    # Window and experts are written for "llama" alone: llama.cpp builds Qwen's layers without
    # them.
    kind = name_of(c)
    if kind != "llama" and (c.experts or c.window):
        raise ValueError(f"GGUF's {kind} architecture has no experts and no window; use --to=hf")
    if kind == "llama" and c.rotary_size:
        raise ValueError("GGUF's llama architecture rotates whole heads; use --to=hf")
    values = write_shape(c, kind)
    if c.window:
        values[f"{kind}.attention.sliding_window"] = c.window
    if c.experts:
        values |= {
            f"{kind}.expert_count": c.experts,
            f"{kind}.expert_used_count": c.experts_per_token,
        }
    return values


def rules(c: ModelConfig, name: str) -> tuple[Rule, ...]:
    """The tensors of a model under an architecture's name, as rules that read both ways."""
    # By the name and not by the model: a "llama" may have the biases that every "qwen2" has.
    return rotated_rules(c, "h p" if name == "llama" else "p h")


def notes(c: ModelConfig) -> list[str]:
    """A line on the window, which llama.cpp does not read under these architectures."""
    if not c.window:
        return []
    return [
        f"llama.cpp has no window under the architecture {name_of(c)}: beyond {c.window:,} tokens "
        "it computes other logits than this model"
    ]


def rotated_rules(c: ModelConfig, pair: str) -> tuple[Rule, ...]:
    """The tensors of a model whose rotary pairs are stored as `pair`: "h p", the two elements of a
    pair next to each other, or "p h", in two halves of the head as in our layers."""
    # p counts the two elements of a pair and h the H/2 pairs, so that "(h p) -> (p h)" is the
    # permutation. Values are not rotated and need none.
    block, ours = "blk.{layer}", "layers"
    tensor_rules = [
        Rule("token_embd.weight", "embed/table", "V D -> V D"),
        Rule(f"{block}.attn_norm.weight", f"{ours}/attention_norm/scale", "D -> D"),
        Rule(f"{block}.attn_q.weight", f"{ours}/attention/query", f"(N {pair}) D -> D N (p h)"),
        Rule(f"{block}.attn_k.weight", f"{ours}/attention/key", f"(K {pair}) D -> D K (p h)"),
        Rule(f"{block}.attn_v.weight", f"{ours}/attention/value", "(K H) D -> D K H"),
        Rule(f"{block}.attn_output.weight", f"{ours}/attention/out", "D (N H) -> N H D"),
        Rule(f"{block}.ffn_norm.weight", f"{ours}/mlp_norm/scale", "D -> D"),
        Rule("output_norm.weight", "final_norm/scale", "D -> D"),
    ]
    if c.attention_bias != "none":
        tensor_rules += [
            Rule(f"{block}.attn_q.bias", f"{ours}/attention/query_bias", f"(N {pair}) -> N (p h)"),
            Rule(f"{block}.attn_k.bias", f"{ours}/attention/key_bias", f"(K {pair}) -> K (p h)"),
            Rule(f"{block}.attn_v.bias", f"{ours}/attention/value_bias", "(K H) -> K H"),
        ]
    if c.attention_bias == "all":
        out = Rule(f"{block}.attn_output.bias", f"{ours}/attention/out_bias", "D -> D")
        tensor_rules += [out]
    if c.query_norm:
        tensor_rules += [
            Rule(f"{block}.attn_q_norm.weight", f"{ours}/attention/query_norm", "H -> H"),
            Rule(f"{block}.attn_k_norm.weight", f"{ours}/attention/key_norm", "H -> H"),
        ]
    tensor_rules += _feed_forward(c, block, ours)
    return (*tensor_rules, *([] if c.tied else [Rule("output.weight", "head/table", "V D -> V D")]))


def _feed_forward(c: ModelConfig, block: str, ours: str) -> list[Rule]:
    # All experts of a layer are one tensor here, where Hugging Face's folders have one for each.
    if c.experts:
        return [
            Rule(f"{block}.ffn_gate_inp.weight", f"{ours}/mlp/router", "E D -> D E"),
            Rule(f"{block}.ffn_gate_exps.weight", f"{ours}/mlp/gate", "E F D -> E D F"),
            Rule(f"{block}.ffn_up_exps.weight", f"{ours}/mlp/up", "E F D -> E D F"),
            Rule(f"{block}.ffn_down_exps.weight", f"{ours}/mlp/down", "E D F -> E F D"),
        ]
    return [
        Rule(f"{block}.ffn_gate.weight", f"{ours}/mlp/gate", "F D -> D F"),
        Rule(f"{block}.ffn_up.weight", f"{ours}/mlp/up", "F D -> D F"),
        Rule(f"{block}.ffn_down.weight", f"{ours}/mlp/down", "D F -> F D"),
    ]


ARCHITECTURE = Architecture(
    names=("llama", "qwen2", "qwen3"),
    name_of=name_of,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    notes=notes,
)
