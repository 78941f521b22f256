"""BERT (arXiv:1810.04805) in Hugging Face's names: the encoder, and of pooler, masked-LM head and
classifiers those that a checkpoint has.
"""

from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
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

_POOLER = "pooler.dense.weight"


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json and the tensors' `names` describe. ValueError for settings that
    our layers do not compute."""
    # config.json is the same for every head; only the tensors tell which ones were saved.
    labels = read_labels(values, names, _POOLER)
    of_texts = labels.get("labels_over", "text") == "text"
    return ModelConfig(
        **read_body(values),
        max_length=integer(values, "max_position_embeddings"),
        pooler=of_texts and any(name.endswith(_POOLER) for name in names),
        mlm_head="cls.predictions.transform.dense.weight" in names,
        **labels,
    )


def read_body(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `ModelConfig` that BERT's config.json shares with RoBERTa's: all but heads
    and positions. ValueError for settings that our layers do not compute."""
    heads, d_model = integer(values, "num_attention_heads"), integer(values, "hidden_size")
    refuse(
        values,
        is_decoder=False,
        add_cross_attention=False,
        position_embedding_type="absolute",
        tie_word_embeddings=True,
    )
    return dict(
        kind="encoder",
        vocab_size=integer(values, "vocab_size"),
        layers=integer(values, "num_hidden_layers"),
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_size=max(1, d_model // heads),
        d_ff=integer(values, "intermediate_size"),
        position="learned",
        norm="layer",
        norm_after=True,  # norms follow the residual sum, as in arXiv:1706.03762
        norm_eps=number(values, "layer_norm_eps", 1e-12),
        activation=activation(values, "hidden_act", "gelu"),
        gated=False,
        attention_bias="all",
        mlp_bias=True,
        # The masked-LM head multiplies by the token table; an untied one is refused above.
        tied=True,
        token_types=integer(values, "type_vocab_size", 2),
        dropout=number(values, "hidden_dropout_prob", 0.1),
        # A normal of one width for all matrices.
        init="plain",
        init_std=number(values, "initializer_range", 0.02),
    )


def serves(c: ModelConfig) -> bool:
    """True for an encoder, unless it is RoBERTa's or ELECTRA's, or one with a norm of the
    embeddings and no token types."""
    plain = c.kind == "encoder" and not (c.position_offset or c.embedding_norm)
    return plain and c.pooler_layer != "gelu"


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json, for the class that has the model's heads."""
    if c.labels:
        name = labelled_class("Bert", c)
    elif c.mlm_head:
        name = "BertForPreTraining" if c.pooler else "BertForMaskedLM"
    else:
        name = "BertModel"
    return {
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
        # Our attention weights have no dropout.
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": c.init_std,
        **write_labels(c),
    }


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """The tensors of BertForPreTraining and of the classes with labels that the model has, as rules
    that read both ways. torch stores linear weights [out, in], ours are [in, out]."""
    # "attention.self" projects queries, keys and values, "attention.output" has the projection out
    # and the norm after it; "intermediate" and the layer's own "output" are the two of the MLP.
    layer, attention = "bert.encoder.layer.{layer}", "bert.encoder.layer.{layer}.attention"
    tensor_rules = [
        Rule("bert.embeddings.word_embeddings.weight", "embed/table", "V D -> V D"),
        Rule("bert.embeddings.position_embeddings.weight", "embed/positions", "P D -> P D"),
        Rule("bert.embeddings.token_type_embeddings.weight", "embed/types", "Y D -> Y D"),
    ]
    for role in ("query", "key", "value"):
        tensor_rules += [
            Rule(f"{attention}.self.{role}.weight", f"layers/attention/{role}", "(N H) D -> D N H"),
            Rule(f"{attention}.self.{role}.bias", f"layers/attention/{role}_bias", "(N H) -> N H"),
        ]
    tensor_rules += [
        Rule(f"{attention}.output.dense.weight", "layers/attention/out", "D (N H) -> N H D"),
        Rule(f"{attention}.output.dense.bias", "layers/attention/out_bias", "D -> D"),
        Rule(f"{layer}.intermediate.dense.weight", "layers/mlp/up", "F D -> D F"),
        Rule(f"{layer}.intermediate.dense.bias", "layers/mlp/up_bias", "F -> F"),
        Rule(f"{layer}.output.dense.weight", "layers/mlp/down", "D F -> F D"),
        Rule(f"{layer}.output.dense.bias", "layers/mlp/down_bias", "D -> D"),
    ]
    # Norms are named after the part that they follow.
    norms = [
        ("bert.embeddings", "embed/norm"),
        (f"{attention}.output", "layers/attention_norm"),
        (f"{layer}.output", "layers/mlp_norm"),
    ]
    if c.mlm_head:
        # A transform of the states, then the product with the table and a bias of its own; the
        # decoder's weight is the table and therefore stands under `copies`.
        norms += [("cls.predictions.transform", "head/norm")]
        tensor_rules += [
            Rule("cls.predictions.transform.dense.weight", "head/kernel", "M D -> D M"),
            Rule("cls.predictions.transform.dense.bias", "head/bias", "D -> D"),
            Rule("cls.predictions.bias", "head/output_bias", "V -> V"),
        ]
    for theirs, ours in norms:
        tensor_rules += norm_rules(f"{theirs}.LayerNorm", ours)
    if c.pooler:
        tensor_rules += [Rule("bert.pooler.dense.weight", "pooler/kernel", "M D -> D M")]
        tensor_rules += [Rule("bert.pooler.dense.bias", "pooler/bias", "D -> D")]
    return (*tensor_rules, *label_rules(c))


def renamed(rules: Iterable[Rule], names: Mapping[str, str]) -> tuple[Rule, ...]:
    """Rules with other starts of their names, by the first of `names` with which one begins."""
    changed = []
    for rule in rules:
        start = next(start for start in names if rule.name.startswith(start))
        changed.append(replace(rule, name=names[start] + rule.name.removeprefix(start)))
    return tuple(changed)


def _further(values: Mapping[str, Any], c: ModelConfig) -> tuple[tuple[str, str], ...]:
    if c.labels_over == "text":
        return ()
    return ((r"(bert\.)?pooler\..*", "the pooler, which labels of tokens do not read"),)


FAMILY = Family(
    model_types=("bert",),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    # BertModel alone saves its tensors without the prefix. Checkpoints converted from TensorFlow
    # call a norm's scale gamma and its bias beta.
    prefix="bert.",
    renames=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    unused=(
        (r"(bert\.)?embeddings\.position_ids", "0, 1, 2, ..."),
        (r"cls\.seq_relationship\..*", "the next-sentence head, which the model does not have"),
    ),
    further=_further,
    copies=(
        ("cls.predictions.decoder.weight", "embed/table"),
        ("cls.predictions.decoder.bias", "head/output_bias"),
    ),
)
