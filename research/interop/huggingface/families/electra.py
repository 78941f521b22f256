"""ELECTRA (arXiv:2003.10555) in Hugging Face's names: BERT's layers, and a classifier over the
first token after a layer with gelu, or over every token as it is. Embeddings must be as wide as the
layers, as in base and large.
"""

from collections.abc import Mapping, Set
from typing import Any

from research.interop.huggingface.families import bert
from research.interop.huggingface.families.fields import integer
from research.interop.huggingface.families.labels import labelled_class, read_labels
from research.interop.storage.family import Family
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig

# Of BERT's names, the starts that differ.
_NAMES = {
    "bert.pooler.dense": "classifier.dense",
    "bert.": "electra.",
    "cls.predictions.transform.dense": "generator_predictions.dense",
    "cls.predictions.transform.LayerNorm": "generator_predictions.LayerNorm",
    "cls.predictions.bias": "generator_lm_head.bias",
    "qa_outputs.": "qa_outputs.",
}


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json and the tensors' `names` describe. ValueError for settings that
    our layers do not compute."""
    body = bert.read_body(values)
    width = integer(values, "embedding_size", 128)
    if width != body["d_model"]:
        raise ValueError(
            f"config.json has embedding_size={width} beside hidden_size={body['d_model']}; one "
            "width for both is supported"
        )
    mlm_head = "generator_predictions.dense.weight" in names
    if mlm_head and body["activation"] != "gelu":
        raise ValueError(
            f"config.json has hidden_act={values['hidden_act']!r}; the head of the class has gelu, "
            "and one activation for both is supported"
        )
    labels = read_labels(values, names, "classifier.out_proj.weight")
    return ModelConfig(
        **body,
        max_length=integer(values, "max_position_embeddings", 512),
        pooler=labels.get("labels_over") == "text",
        pooler_layer="gelu",
        mlm_head=mlm_head,
        **labels,
    )


def serves(c: ModelConfig) -> bool:
    """True for BERT's encoder with a pooler of gelu."""
    plain = c.kind == "encoder" and not (c.position_offset or c.embedding_norm)
    return plain and c.pooler_layer == "gelu"


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json, for the class that has the model's heads."""
    if c.labels:
        name = labelled_class("Electra", c)
    else:
        name = "ElectraForMaskedLM" if c.mlm_head else "ElectraModel"
    own = {"architectures": [name], "model_type": "electra", "embedding_size": c.d_model}
    return bert.write_config(c) | own


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """The tensors of ElectraForMaskedLM and of the classes with labels that the model has, as rules
    that read both ways."""
    layer = "classifier.out_proj." if c.labels_over == "text" else "classifier."
    return bert.renamed(bert.rules(c), {**_NAMES, "classifier.": layer})


FAMILY = Family(
    model_types=("electra",),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    prefix="electra.",
    unused=(
        (r"electra\.embeddings\.position_ids", "0, 1, 2, ..."),
        (
            r"discriminator_predictions\..*",
            "the head that tells replaced tokens, which the model does not have",
        ),
    ),
    copies=(("generator_lm_head.weight", "embed/table"),),
)
