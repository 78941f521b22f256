"""Marian in Hugging Face's names, the class of transformers whose layers are those of
arXiv:1706.03762, with one table for source, target and output words.
"""

from collections.abc import Mapping, Set
from typing import Any

from research.interop.huggingface.families.fields import (
    THEIR_ACTIVATIONS,
    activation,
    flag,
    integer,
    number,
    read_start,
    refuse,
    write_start,
)
from research.interop.storage.family import Family
from research.interop.storage.layout import Rule, norm_rules
from research.models.config import ModelConfig


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json describes; `names`, the tensors, are not asked. ValueError for
    settings that our layers do not compute."""
    # transformers' defaults for fields that a config.json leaves out.
    values = {"encoder_attention_heads": 16, "encoder_ffn_dim": 4096, **values}
    refuse(
        values,
        share_encoder_decoder_embeddings=True,
        decoder_vocab_size=integer(values, "vocab_size"),
        normalize_before=False,
        normalize_embedding=False,
        add_final_layer_norm=False,
        static_position_embeddings=True,
    )
    return ModelConfig(
        **read_body(values),
        position="sinusoidal",
        norm_after=True,
        head_bias=True,
        decoder_start=read_start(values, start=58100, end=0, pad=58100),
    )


def read_body(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `ModelConfig` that Marian's config.json shares with BART's: all but
    positions, the place of norms, and the head's bias. ValueError for settings that our layers do
    not compute."""
    d_model, vocab_size = integer(values, "d_model"), integer(values, "vocab_size")
    heads, d_ff = integer(values, "decoder_attention_heads"), integer(values, "decoder_ffn_dim")
    # One width for both stacks and one table for everything is what our encoder-decoder has.
    refuse(values, encoder_attention_heads=heads, encoder_ffn_dim=d_ff, tie_word_embeddings=True)
    return dict(
        kind="encoder_decoder",
        vocab_size=vocab_size,
        layers=integer(values, "decoder_layers"),
        encoder_layers=integer(values, "encoder_layers"),
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_size=max(1, d_model // heads),
        d_ff=d_ff,
        max_length=integer(values, "max_position_embeddings", 1024),
        norm="layer",
        activation=activation(values, "activation_function", "gelu"),
        gated=False,
        attention_bias="all",
        mlp_bias=True,
        tied=True,
        # arXiv:1706.03762, section 3.4: embeddings times sqrt(D).
        embedding_scale=d_model**0.5 if flag(values, "scale_embedding", False) else 1.0,
        dropout=number(values, "dropout", 0.1),
        init="xavier",
    )


def serves(c: ModelConfig) -> bool:
    """True for an encoder-decoder with sinusoidal positions and norms after the sums."""
    return c.kind == "encoder_decoder" and c.position == "sinusoidal" and c.norm_after


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json. ValueError for a model without the biases of Marian's layers."""
    if c.attention_bias != "all" or not c.head_bias:
        raise ValueError(
            "Marian, the one architecture of transformers with the layers of 2017, has biases in "
            "attention and head; "
            "train with config.model.attention_bias=all and config.model.head_bias=True to export"
        )
    return {
        "architectures": ["MarianMTModel"],
        "model_type": "marian",
        "decoder_vocab_size": c.vocab_size,
        "share_encoder_decoder_embeddings": True,
        **write_body(c),
        **write_start(c, end=0, pad=58100),
    }


def write_body(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json that `read_body` reads."""
    return {
        "is_encoder_decoder": True,
        "vocab_size": c.vocab_size,
        "d_model": c.d_model,
        "encoder_layers": c.encoder_layers,
        "decoder_layers": c.layers,
        "encoder_attention_heads": c.heads,
        "decoder_attention_heads": c.heads,
        "encoder_ffn_dim": c.d_ff,
        "decoder_ffn_dim": c.d_ff,
        "max_position_embeddings": c.max_length,
        "activation_function": THEIR_ACTIVATIONS[c.activation],
        "scale_embedding": c.embedding_scale != 1.0,
        "tie_word_embeddings": True,
        "dropout": c.dropout,
        # Our layers drop states alone, neither attention weights nor activations inside the MLP.
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
    }


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """The tensors of MarianMTModel, as rules that read both ways. torch stores linear weights
    [out, in], ours are [in, out]."""
    tensor_rules = [Rule("model.shared.weight", "embed/table", "V D -> V D")]
    # Some BARTs were saved by a class that has no head and leaves it out; it is then 0.
    if c.head_bias:
        tensor_rules += [Rule("final_logits_bias", "head/output_bias", "1 V -> V")]
    for theirs, ours in (("encoder", "encoder/layers"), ("decoder", "layers")):
        layer = f"model.{theirs}.layers.{{layer}}"
        # "final_layer_norm" is a layer's last, after the MLP; the stack itself has none at its end.
        branches = [("self_attn", "attention")] + (
            [("encoder_attn", "cross")] if theirs == "decoder" else []
        )
        norms = [(f"{name}_layer_norm", role) for name, role in branches] + [
            ("final_layer_norm", "mlp")
        ]
        for name, role in branches:
            tensor_rules += _attention(f"{layer}.{name}", f"{ours}/{role}")
        for name, role in norms:
            tensor_rules += norm_rules(f"{layer}.{name}", f"{ours}/{role}_norm")
        tensor_rules += [
            Rule(f"{layer}.fc1.weight", f"{ours}/mlp/up", "F D -> D F"),
            Rule(f"{layer}.fc1.bias", f"{ours}/mlp/up_bias", "F -> F"),
            Rule(f"{layer}.fc2.weight", f"{ours}/mlp/down", "D F -> F D"),
            Rule(f"{layer}.fc2.bias", f"{ours}/mlp/down_bias", "D -> D"),
        ]
    return tuple(tensor_rules)


def _attention(theirs: str, ours: str) -> list[Rule]:
    tensor_rules = []
    for name, role in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
        tensor_rules += [
            Rule(f"{theirs}.{name}.weight", f"{ours}/{role}", "(N H) D -> D N H"),
            Rule(f"{theirs}.{name}.bias", f"{ours}/{role}_bias", "(N H) -> N H"),
        ]
    tensor_rules += [Rule(f"{theirs}.out_proj.weight", f"{ours}/out", "D (N H) -> N H D")]
    return [*tensor_rules, Rule(f"{theirs}.out_proj.bias", f"{ours}/out_bias", "D -> D")]


FAMILY = Family(
    model_types=("marian",),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    # Sinusoids are computed here, and the three other uses of the table may be saved beside it.
    unused=((r"model\.(en|de)coder\.embed_positions\.weight", "the sinusoids"),),
    copies=(
        ("model.encoder.embed_tokens.weight", "embed/table"),
        ("model.decoder.embed_tokens.weight", "embed/table"),
        ("lm_head.weight", "embed/table"),
    ),
)
