"""RoBERTa (arXiv:1907.11692) and XLM-R (arXiv:1911.02116) in Hugging Face's names.

BERT's layers and parameters under other names. Positions are counted from the padding token's id
plus 1, so the first rows of their table belong to no position. The classifier has the pooler in it.
"""

from collections.abc import Mapping, Set
from typing import Any

from research.interop.huggingface.families import bert
from research.interop.huggingface.families.fields import index, integer
from research.interop.huggingface.families.labels import labelled_class, read_labels
from research.interop.storage.family import Family
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig

_POOLER, _CLASSIFIER = "roberta.pooler.dense", "classifier.dense"
# Of BERT's names, the starts that differ. The last layer of the head is the token table.
_NAMES = {
    "bert.": "roberta.",
    "cls.predictions.transform.dense": "lm_head.dense",
    "cls.predictions.transform.LayerNorm": "lm_head.layer_norm",
    "cls.predictions.bias": "lm_head.bias",
    "qa_outputs.": "qa_outputs.",
}


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json and the tensors' `names` describe. ValueError for settings that
    our layers do not compute."""
    body = bert.read_body(values)
    offset = index(values, "pad_token_id", 1) + 1
    rows = integer(values, "max_position_embeddings", 512)
    if rows <= offset:
        raise ValueError(
            f"config.json has max_position_embeddings={rows}, of which pad_token_id={offset - 1} "
            "leaves none; restore it from the source"
        )
    classifies = f"{_CLASSIFIER}.weight" in names
    labels = read_labels(values, names, f"{_CLASSIFIER}.weight")
    of_texts = labels.get("labels_over", "text") == "text"
    mlm_head = "lm_head.dense.weight" in names
    if mlm_head and body["activation"] != "gelu":
        raise ValueError(
            f"config.json has hidden_act={values['hidden_act']!r}; the head of the class has gelu, "
            "and one activation for both is supported"
        )
    return ModelConfig(
        **body,
        max_length=rows - offset,
        position_offset=offset,
        pooler=of_texts and (classifies or f"{_POOLER}.weight" in names),
        mlm_head=mlm_head,
        **labels,
    )


def serves(c: ModelConfig) -> bool:
    """True for an encoder whose learned positions, and no others, have rows in front of them."""
    return c.kind == "encoder" and c.position_offset > 0 and not c.score_offsets


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json, for the class that has the model's heads."""
    if c.labels:
        name = labelled_class("Roberta", c)
    else:
        name = "RobertaForMaskedLM" if c.mlm_head else "RobertaModel"
    return bert.write_config(c) | {
        "architectures": [name],
        "model_type": "roberta",
        "max_position_embeddings": c.position_offset + c.max_length,
        # What the offset is in this class; the tokenizer's padding has no other id.
        "pad_token_id": c.position_offset - 1,
    }


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """The tensors of RobertaForMaskedLM and of the classes with labels that the model has, as rules
    that read both ways."""
    # A classifier has its own pooler; without one it is that of the bare model.
    pooler = _CLASSIFIER if c.labels else _POOLER
    layer = "classifier.out_proj." if c.labels_over == "text" else "classifier."
    return bert.renamed(
        bert.rules(c), {"bert.pooler.dense": pooler, "classifier.": layer, **_NAMES}
    )


FAMILY = Family(
    model_types=("roberta", "xlm-roberta"),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    prefix="roberta.",
    unused=(
        (r"roberta\.embeddings\.position_ids", "0, 1, 2, ..."),
        (r"roberta\.pooler\..*", "the bare model's pooler, which its classifiers do not read"),
    ),
    copies=(
        ("lm_head.decoder.weight", "embed/table"),
        ("lm_head.decoder.bias", "head/output_bias"),
    ),
    classes={"roberta": "Roberta", "xlm-roberta": "XLMRoberta"},
)
