"""GPT-2 in Hugging Face's names.

Its linear layers are transformers' Conv1D, stored [in, out] as ours, with queries, keys and values
in one matrix.
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
from research.interop.storage.family import Family
from research.interop.storage.layout import Rule, norm_rules
from research.models.config import ModelConfig


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json describes; `names`, the tensors, are not asked. ValueError for
    settings that our layers do not compute."""
    d_model, heads = integer(values, "n_embd"), integer(values, "n_head")
    # Variants of the class that scale or round the scores otherwise, or read an encoder.
    refuse(
        values,
        scale_attn_by_inverse_layer_idx=False,
        reorder_and_upcast_attn=False,
        scale_attn_weights=True,
        add_cross_attention=False,
    )
    return ModelConfig(
        kind="decoder",
        vocab_size=integer(values, "vocab_size"),
        layers=integer(values, "n_layer"),
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_size=max(1, d_model // heads),
        # transformers' own default, null, means four times the width.
        d_ff=integer(values, "n_inner", 4 * d_model),
        max_length=integer(values, "n_positions"),
        position="learned",
        norm="layer",
        norm_eps=number(values, "layer_norm_epsilon", 1e-5),
        # OpenAI's code has the approximation by tanh, which "gelu_new" names.
        activation=activation(values, "activation_function", "gelu_new"),
        gated=False,
        attention_bias="all",
        mlp_bias=True,
        tied=flag(values, "tie_word_embeddings", True),
        dropout=number(values, "resid_pdrop", 0.1),
        init_std=number(values, "initializer_range", 0.02),
    )


def serves(c: ModelConfig) -> bool:
    """True for a decoder with learned positions."""
    return c.kind == "decoder" and c.position == "learned"


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": c.vocab_size,
        "n_positions": c.max_length,
        "n_embd": c.d_model,
        "n_layer": c.layers,
        "n_head": c.heads,
        "n_inner": c.d_ff,
        "activation_function": THEIR_ACTIVATIONS[c.activation],
        "layer_norm_epsilon": c.norm_eps,
        "resid_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        "attn_pdrop": 0.0,  # our attention weights have no dropout
        "tie_word_embeddings": c.tied,
        "initializer_range": c.init_std,
    }


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """The tensors of GPT2LMHeadModel, as rules that read both ways."""
    layer = "transformer.h.{layer}"
    # In this order along the outputs of c_attn.
    side_by_side = ("query", "key", "value")
    tensor_rules = [
        Rule("transformer.wte.weight", "embed/table", "V D -> V D"),
        Rule("transformer.wpe.weight", "embed/positions", "P D -> P D"),
        Rule(
            f"{layer}.attn.c_attn.weight",
            tuple(f"layers/attention/{n}" for n in side_by_side),
            # One tensor is three of ours, taken apart along the first axis of the right side.
            "D (3 N H) -> 3 D N H",
        ),
        Rule(
            f"{layer}.attn.c_attn.bias",
            tuple(f"layers/attention/{n}_bias" for n in side_by_side),
            "(3 N H) -> 3 N H",
        ),
        Rule(f"{layer}.attn.c_proj.weight", "layers/attention/out", "(N H) D -> N H D"),
        Rule(f"{layer}.attn.c_proj.bias", "layers/attention/out_bias", "D -> D"),
        Rule(f"{layer}.mlp.c_fc.weight", "layers/mlp/up", "D F -> D F"),
        Rule(f"{layer}.mlp.c_fc.bias", "layers/mlp/up_bias", "F -> F"),
        Rule(f"{layer}.mlp.c_proj.weight", "layers/mlp/down", "F D -> F D"),
        Rule(f"{layer}.mlp.c_proj.bias", "layers/mlp/down_bias", "D -> D"),
    ]
    for theirs, ours in (
        (f"{layer}.ln_1", "layers/attention_norm"),
        (f"{layer}.ln_2", "layers/mlp_norm"),
        ("transformer.ln_f", "final_norm"),
    ):
        tensor_rules += norm_rules(theirs, ours)
    return (
        *tensor_rules,
        *([] if c.tied else [Rule("lm_head.weight", "head/table", "V D -> V D")]),
    )


FAMILY = Family(
    model_types=("gpt2",),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    prefix="transformer.",
    # GPT2Model alone saves its tensors without the prefix. Older releases saved the causal mask as
    # a buffer named like a parameter.
    unused=((r".*\.attn\.(bias|masked_bias)", "the causal mask"),),
    copies=(("lm_head.weight", "embed/table"),),
)
