"""GPT-NeoX and Pythia (arXiv:2204.06745, arXiv:2304.01373) in Hugging Face's names.

Attention and feed-forward read the same states and are added at once; a quarter of each head is
rotated. Queries, keys and values of a head lie side by side in one matrix.
"""

from collections.abc import Mapping, Set
from typing import Any

from research.interop.huggingface.families.fields import (
    THEIR_ACTIVATIONS,
    activation,
    flag,
    integer,
    number,
    refuse,
)
from research.interop.huggingface.families.rope import (
    read_rope,
    read_rotary_size,
    rotary_share,
    write_scaling,
)
from research.interop.storage.family import Family
from research.interop.storage.layout import Rule, norm_rules
from research.models.config import ModelConfig


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json describes; `names`, the tensors, are not asked. ValueError for
    settings that our layers do not compute."""
    d_model, heads = integer(values, "hidden_size"), integer(values, "num_attention_heads")
    head_size = max(1, d_model // heads)
    # Older names of two rotary fields.
    renamed = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
    values = {**{ours: values.get(theirs) for ours, theirs in renamed.items()}, **values}
    theta, scaling = read_rope(values, partial=True)
    refuse(values, is_decoder=False)
    return ModelConfig(
        kind="decoder",
        vocab_size=integer(values, "vocab_size"),
        layers=integer(values, "num_hidden_layers"),
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_size=head_size,
        d_ff=integer(values, "intermediate_size"),
        max_length=integer(values, "max_position_embeddings"),
        rope_theta=theta,
        rope_scaling=scaling,
        rotary_size=read_rotary_size(values, head_size, 0.25),
        norm="layer",
        norm_eps=number(values, "layer_norm_eps", 1e-5),
        parallel=flag(values, "use_parallel_residual", True),
        activation=activation(values, "hidden_act", "gelu"),
        gated=False,
        attention_bias="all" if flag(values, "attention_bias", True) else "none",
        mlp_bias=True,
        tied=flag(values, "tie_word_embeddings", False),
        dropout=number(values, "hidden_dropout", 0.0),  # attention weights have none
        init_std=number(values, "initializer_range", 0.02),
    )


def serves(c: ModelConfig) -> bool:
    """True for a decoder with rotary positions and layer norms, and without experts."""
    rotary = c.kind == "decoder" and c.position == "rope"
    return rotary and c.norm == "layer" and not c.experts


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json, in the spelling of transformers 4, which version 5 reads too."""
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "intermediate_size": c.d_ff,
        "max_position_embeddings": c.max_length,
        "rotary_emb_base": c.rope_theta,
        "rotary_pct": rotary_share(c),
        "rope_scaling": write_scaling(c),
        "layer_norm_eps": c.norm_eps,
        "use_parallel_residual": c.parallel,
        "hidden_act": THEIR_ACTIVATIONS[c.activation],
        "attention_bias": c.attention_bias == "all",
        "hidden_dropout": c.dropout,
        "attention_dropout": 0.0,  # our attention weights have no dropout
        "tie_word_embeddings": c.tied,
        "initializer_range": c.init_std,
    }


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """The tensors of GPTNeoXForCausalLM, as rules that read both ways."""
    layer, ours = "gpt_neox.layers.{layer}", "layers"
    side_by_side = ("query", "key", "value")
    found = [
        Rule("gpt_neox.embed_in.weight", "embed/table", "V D -> V D"),
        Rule(
            f"{layer}.attention.query_key_value.weight",
            tuple(f"{ours}/attention/{name}" for name in side_by_side),
            # The three of one head are neighbours.
            "(N 3 H) D -> 3 D N H",
        ),
        Rule(f"{layer}.attention.dense.weight", f"{ours}/attention/out", "D (N H) -> N H D"),
        Rule(f"{layer}.mlp.dense_h_to_4h.weight", f"{ours}/mlp/up", "F D -> D F"),
        Rule(f"{layer}.mlp.dense_h_to_4h.bias", f"{ours}/mlp/up_bias", "F -> F"),
        Rule(f"{layer}.mlp.dense_4h_to_h.weight", f"{ours}/mlp/down", "D F -> F D"),
        Rule(f"{layer}.mlp.dense_4h_to_h.bias", f"{ours}/mlp/down_bias", "D -> D"),
    ]
    if c.attention_bias == "all":
        found += [
            Rule(
                f"{layer}.attention.query_key_value.bias",
                tuple(f"{ours}/attention/{name}_bias" for name in side_by_side),
                "(N 3 H) -> 3 N H",
            ),
            Rule(f"{layer}.attention.dense.bias", f"{ours}/attention/out_bias", "D -> D"),
        ]
    for theirs, our_norm in (
        (f"{layer}.input_layernorm", f"{ours}/attention_norm"),
        (f"{layer}.post_attention_layernorm", f"{ours}/mlp_norm"),
        ("gpt_neox.final_layer_norm", "final_norm"),
    ):
        found += norm_rules(theirs, our_norm)
    head = [] if c.tied else [Rule("embed_out.weight", "head/table", "V D -> V D")]
    return (*found, *head)


FAMILY = Family(
    model_types=("gpt_neox",),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    prefix="gpt_neox.",
    unused=(
        (r".*\.rotary_emb\.inv_freq", "computed from rotary_emb_base"),
        (r".*\.attention\.(bias|masked_bias)", "the causal mask"),
    ),
    copies=(("embed_out.weight", "embed/table"),),
)
