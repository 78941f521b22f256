"""BERT in Hugging Face's names: with pooler, masked-LM head or classifier as far as a checkpoint
has them."""

from collections.abc import Mapping, Set
from typing import Any

from research.interop.huggingface.families.fields import (
    THEIR_ACTIVATIONS,
    activation,
    integer,
    number,
    refuse,
)
from research.interop.storage.family import Family
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model of a config.json; its tensors tell which heads it has."""
    heads, d_model = integer(values, "num_attention_heads"), integer(values, "hidden_size")
    refuse(
        values,
        is_decoder=False,
        add_cross_attention=False,
        position_embedding_type="absolute",
        tie_word_embeddings=True,
    )
    return ModelConfig(
        kind="encoder",
        vocab_size=integer(values, "vocab_size"),
        layers=integer(values, "num_hidden_layers"),
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_size=max(1, d_model // heads),
        d_ff=integer(values, "intermediate_size"),
        max_length=integer(values, "max_position_embeddings"),
        position="learned",
        norm="layer",
        norm_after=True,
        norm_eps=number(values, "layer_norm_eps", 1e-12),
        activation=activation(values, "hidden_act", "gelu"),
        gated=False,
        attention_bias="all",
        mlp_bias=True,
        tied=True,
        token_types=integer(values, "type_vocab_size", 2),
        pooler=any(name.endswith("pooler.dense.weight") for name in names),
        mlm_head="cls.predictions.transform.dense.weight" in names,
        labels=_count_labels(values) if "classifier.weight" in names else 0,
        dropout=number(values, "hidden_dropout_prob", 0.1),
        init="plain",
        init_std=number(values, "initializer_range", 0.02),
    )


def _count_labels(values: Mapping[str, Any]) -> int:
    labels = values.get("id2label")
    return (
        len(labels) if isinstance(labels, Mapping) and labels else integer(values, "num_labels", 2)
    )


def serves(c: ModelConfig) -> bool:
    """Whether it is an encoder."""
    return c.kind == "encoder"


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The config.json of the class that has these heads."""
    if c.labels:
        name = "BertForSequenceClassification"
    elif c.mlm_head:
        name = "BertForPreTraining" if c.pooler else "BertForMaskedLM"
    else:
        name = "BertModel"
    labels = {str(n): f"LABEL_{n}" for n in range(c.labels)}
    values = {
        "architectures": [name],
        "model_type": "bert",
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "intermediate_size": c.d_ff,
        "hidden_act": THEIR_ACTIVATIONS[c.activation],
        "max_position_embeddings": c.max_length,
        "type_vocab_size": c.token_types,
        "layer_norm_eps": c.norm_eps,
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": c.init_std,
    }
    return values | (
        {"id2label": labels, "label2id": {name: int(n) for n, name in labels.items()}}
        if labels
        else {}
    )


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """The tensors of BertForPreTraining and BertForSequenceClassification, as far as the model has
    them."""
    layer, attention = "bert.encoder.layer.{layer}", "bert.encoder.layer.{layer}.attention"
    found = [
        Rule("bert.embeddings.word_embeddings.weight", "embed/table", "V D -> V D"),
        Rule("bert.embeddings.position_embeddings.weight", "embed/positions", "P D -> P D"),
        Rule("bert.embeddings.token_type_embeddings.weight", "embed/types", "Y D -> Y D"),
    ]
    for role in ("query", "key", "value"):
        found += [
            Rule(f"{attention}.self.{role}.weight", f"layers/attention/{role}", "(N H) D -> D N H"),
            Rule(f"{attention}.self.{role}.bias", f"layers/attention/{role}_bias", "(N H) -> N H"),
        ]
    found += [
        Rule(f"{attention}.output.dense.weight", "layers/attention/out", "D (N H) -> N H D"),
        Rule(f"{attention}.output.dense.bias", "layers/attention/out_bias", "D -> D"),
        Rule(f"{layer}.intermediate.dense.weight", "layers/mlp/up", "F D -> D F"),
        Rule(f"{layer}.intermediate.dense.bias", "layers/mlp/up_bias", "F -> F"),
        Rule(f"{layer}.output.dense.weight", "layers/mlp/down", "D F -> F D"),
        Rule(f"{layer}.output.dense.bias", "layers/mlp/down_bias", "D -> D"),
    ]
    norms = [
        ("bert.embeddings", "embed/norm"),
        (f"{attention}.output", "layers/attention_norm"),
        (f"{layer}.output", "layers/mlp_norm"),
    ]
    if c.mlm_head:
        norms += [("cls.predictions.transform", "head/norm")]
        found += [
            Rule("cls.predictions.transform.dense.weight", "head/kernel", "M D -> D M"),
            Rule("cls.predictions.transform.dense.bias", "head/bias", "D -> D"),
            Rule("cls.predictions.bias", "head/output_bias", "V -> V"),
        ]
    for theirs, ours in norms:
        found += [Rule(f"{theirs}.LayerNorm.weight", f"{ours}/scale", "D -> D")]
        found += [Rule(f"{theirs}.LayerNorm.bias", f"{ours}/bias", "D -> D")]
    if c.pooler:
        found += [Rule("bert.pooler.dense.weight", "pooler/kernel", "M D -> D M")]
        found += [Rule("bert.pooler.dense.bias", "pooler/bias", "D -> D")]
    if c.labels:
        found += [Rule("classifier.weight", "classifier/kernel", "C D -> D C")]
        found += [Rule("classifier.bias", "classifier/bias", "C -> C")]
    return tuple(found)


FAMILY = Family(
    model_types=("bert",),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    prefix="bert.",
    renames=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    unused=(
        (r"(bert\.)?embeddings\.position_ids", "0, 1, 2, ..."),
        (r"cls\.seq_relationship\..*", "the next-sentence head, which the model does not have"),
    ),
    copies=(
        ("cls.predictions.decoder.weight", "embed/table"),
        ("cls.predictions.decoder.bias", "head/output_bias"),
    ),
)
