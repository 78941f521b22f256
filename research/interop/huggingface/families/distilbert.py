"""DistilBERT (arXiv:1910.01108) in Hugging Face's names: BERT's layers without token types, and a
classifier over the first token after a layer with relu.
"""

from collections.abc import Mapping, Set
from typing import Any

from research.interop.huggingface.families.fields import (
    THEIR_ACTIVATIONS,
    activation,
    integer,
    number,
    refuse,
)
from research.interop.huggingface.families.labels import (
    label_rules,
    labelled_class,
    read_labels,
    write_labels,
)
from research.interop.storage.family import Family
from research.interop.storage.layout import Rule, norm_rules
from research.models.config import ModelConfig

_EPS = 1e-12  # of every norm, a constant of transformers' class


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json and the tensors' `names` describe. ValueError for settings that
    our layers do not compute."""
    heads, d_model = integer(values, "n_heads"), integer(values, "dim")
    refuse(values, tie_word_embeddings=True)
    labels = read_labels(values, names, "pre_classifier.weight")
    return ModelConfig(
        kind="encoder",
        vocab_size=integer(values, "vocab_size"),
        layers=integer(values, "n_layers"),
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_size=max(1, d_model // heads),
        d_ff=integer(values, "hidden_dim"),
        max_length=integer(values, "max_position_embeddings", 512),
        position="learned",
        norm="layer",
        norm_after=True,
        norm_eps=_EPS,
        embedding_norm=True,
        activation=activation(values, "activation", "gelu"),
        gated=False,
        attention_bias="all",
        mlp_bias=True,
        tied=True,
        pooler=labels.get("labels_over") == "text",
        pooler_layer="relu",
        mlm_head="vocab_transform.weight" in names,
        **labels,
        dropout=number(values, "dropout", 0.1),
        init="plain",
        init_std=number(values, "initializer_range", 0.02),
    )


def serves(c: ModelConfig) -> bool:
    """True for an encoder with learned positions and a norm of the embeddings without token
    types."""
    plain = c.kind == "encoder" and c.position == "learned" and not c.position_offset
    return plain and c.embedding_norm


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json, for the class that has the model's heads."""
    if c.labels:
        name = labelled_class("DistilBert", c)
    else:
        name = "DistilBertForMaskedLM" if c.mlm_head else "DistilBertModel"
    return {
        "architectures": [name],
        "model_type": "distilbert",
        "vocab_size": c.vocab_size,
        "dim": c.d_model,
        "hidden_dim": c.d_ff,
        "n_layers": c.layers,
        "n_heads": c.heads,
        "activation": THEIR_ACTIVATIONS[c.activation],
        "max_position_embeddings": c.max_length,
        "sinusoidal_pos_embds": False,
        "dropout": c.dropout,
        # Our attention weights have no dropout.
        "attention_dropout": 0.0,
        "seq_classif_dropout": c.dropout,
        "initializer_range": c.init_std,
        **write_labels(c),
    }


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """The tensors of DistilBertForMaskedLM and of the classes with labels that the model has, as
    rules that read both ways. torch stores linear weights [out, in], ours are [in, out]."""
    layer, embeddings = "distilbert.transformer.layer.{layer}", "distilbert.embeddings"
    tensor_rules = [
        Rule(f"{embeddings}.word_embeddings.weight", "embed/table", "V D -> V D"),
        Rule(f"{embeddings}.position_embeddings.weight", "embed/positions", "P D -> P D"),
    ]
    for name, role in (("q_lin", "query"), ("k_lin", "key"), ("v_lin", "value")):
        theirs, ours = f"{layer}.attention.{name}", f"layers/attention/{role}"
        tensor_rules += [Rule(f"{theirs}.weight", ours, "(N H) D -> D N H")]
        tensor_rules += [Rule(f"{theirs}.bias", f"{ours}_bias", "(N H) -> N H")]
    out = f"{layer}.attention.out_lin"
    tensor_rules += [
        Rule(f"{out}.weight", "layers/attention/out", "D (N H) -> N H D"),
        Rule(f"{out}.bias", "layers/attention/out_bias", "D -> D"),
        Rule(f"{layer}.ffn.lin1.weight", "layers/mlp/up", "F D -> D F"),
        Rule(f"{layer}.ffn.lin1.bias", "layers/mlp/up_bias", "F -> F"),
        Rule(f"{layer}.ffn.lin2.weight", "layers/mlp/down", "D F -> F D"),
        Rule(f"{layer}.ffn.lin2.bias", "layers/mlp/down_bias", "D -> D"),
    ]
    norms = [
        (f"{embeddings}.LayerNorm", "embed/norm"),
        (f"{layer}.sa_layer_norm", "layers/attention_norm"),
        (f"{layer}.output_layer_norm", "layers/mlp_norm"),
    ]
    if c.mlm_head:
        norms += [("vocab_layer_norm", "head/norm")]
        tensor_rules += [
            Rule("vocab_transform.weight", "head/kernel", "M D -> D M"),
            Rule("vocab_transform.bias", "head/bias", "D -> D"),
            Rule("vocab_projector.bias", "head/output_bias", "V -> V"),
        ]
    for theirs, ours in norms:
        tensor_rules += norm_rules(theirs, ours)
    if c.pooler:
        tensor_rules += [Rule("pre_classifier.weight", "pooler/kernel", "M D -> D M")]
        tensor_rules += [Rule("pre_classifier.bias", "pooler/bias", "D -> D")]
    return (*tensor_rules, *label_rules(c))


FAMILY = Family(
    model_types=("distilbert",),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    prefix="distilbert.",
    unused=((r"distilbert\.embeddings\.position_ids", "0, 1, 2, ..."),),
    copies=(("vocab_projector.weight", "embed/table"),),
)
