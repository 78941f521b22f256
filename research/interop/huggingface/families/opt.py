"""OPT (arXiv:2205.01068) in Hugging Face's names: GPT-2's layers with a rectifier, and a position
table whose first two rows nothing reads."""

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

OFFSET = 2


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json describes; `names`, the tensors, are not asked. ValueError for
    settings that our layers do not compute."""
    d_model, heads = integer(values, "hidden_size"), integer(values, "num_attention_heads")
    refuse(
        values,
        # OPT-350M projects its embeddings from 512 to 1,024.
        word_embed_proj_dim=d_model,
        layer_norm_elementwise_affine=True,
        _remove_final_layer_norm=False,
        layerdrop=0.0,
    )
    biased = flag(values, "enable_bias", True)
    return ModelConfig(
        kind="decoder",
        vocab_size=integer(values, "vocab_size"),
        layers=integer(values, "num_hidden_layers"),
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_size=max(1, d_model // heads),
        d_ff=integer(values, "ffn_dim"),
        max_length=integer(values, "max_position_embeddings"),
        position="learned",
        position_offset=OFFSET,
        norm="layer",
        norm_after=not flag(values, "do_layer_norm_before", True),
        activation=activation(values, "activation_function", "relu"),
        gated=False,
        attention_bias="all" if biased else "none",
        mlp_bias=biased,
        tied=flag(values, "tie_word_embeddings", True),
        dropout=number(values, "dropout", 0.1),
        init_std=number(values, "init_std", 0.02),
    )


def serves(c: ModelConfig) -> bool:
    """True for a decoder with learned positions that begin at some row of their table."""
    return c.kind == "decoder" and c.position == "learned" and c.position_offset > 0


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json."""
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "word_embed_proj_dim": c.d_model,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "ffn_dim": c.d_ff,
        "max_position_embeddings": c.max_length,
        "do_layer_norm_before": not c.norm_after,
        "activation_function": THEIR_ACTIVATIONS[c.activation],
        "enable_bias": c.mlp_bias,
        "dropout": c.dropout,
        "attention_dropout": 0.0,  # our attention weights have no dropout
        "tie_word_embeddings": c.tied,
        "init_std": c.init_std,
    }


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """The tensors of OPTForCausalLM, as rules that read both ways."""
    layer, ours = "model.decoder.layers.{layer}", "layers"
    found = [
        Rule("model.decoder.embed_tokens.weight", "embed/table", "V D -> V D"),
        Rule("model.decoder.embed_positions.weight", "embed/positions", "P D -> P D"),
        Rule(f"{layer}.self_attn.out_proj.weight", f"{ours}/attention/out", "D (N H) -> N H D"),
        Rule(f"{layer}.fc1.weight", f"{ours}/mlp/up", "F D -> D F"),
        Rule(f"{layer}.fc2.weight", f"{ours}/mlp/down", "D F -> F D"),
    ]
    for theirs, name in (("q", "query"), ("k", "key"), ("v", "value")):
        place = f"{layer}.self_attn.{theirs}_proj"
        found += [Rule(f"{place}.weight", f"{ours}/attention/{name}", "(N H) D -> D N H")]
        if c.attention_bias == "all":
            found += [Rule(f"{place}.bias", f"{ours}/attention/{name}_bias", "(N H) -> N H")]
    if c.attention_bias == "all":
        found += [Rule(f"{layer}.self_attn.out_proj.bias", f"{ours}/attention/out_bias", "D -> D")]
    if c.mlp_bias:
        found += [
            Rule(f"{layer}.fc1.bias", f"{ours}/mlp/up_bias", "F -> F"),
            Rule(f"{layer}.fc2.bias", f"{ours}/mlp/down_bias", "D -> D"),
        ]
    norms = [
        (f"{layer}.self_attn_layer_norm", f"{ours}/attention_norm"),
        (f"{layer}.final_layer_norm", f"{ours}/mlp_norm"),
    ]
    if not c.norm_after:
        norms += [("model.decoder.final_layer_norm", "final_norm")]
    for theirs, our_norm in norms:
        found += norm_rules(theirs, our_norm)
    head = [] if c.tied else [Rule("lm_head.weight", "head/table", "V D -> V D")]
    return (*found, *head)


FAMILY = Family(
    model_types=("opt",),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    # The bare OPTModel saves "decoder...." without the class's own attribute.
    prefix="model.",
    copies=(("lm_head.weight", "embed/table"),),
)
