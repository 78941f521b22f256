"""The labels of a classifier in Hugging Face's names: of whole texts (ForSequenceClassification),
of tokens (ForTokenClassification), and of the ends of an answer (ForQuestionAnswering).
"""

from collections.abc import Mapping, Set
from typing import Any

from research.interop.huggingface.families.fields import integer
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig

# By `ModelConfig.labels_over`.
_CLASSES = {
    "text": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
    "spans": "ForQuestionAnswering",
}


def read_labels(values: Mapping[str, Any], names: Set[str], text_layer: str) -> dict[str, Any]:
    """`labels` and `labels_over` of an encoder, from a config.json and the tensors' `names`.

    `text_layer` ends the name of a tensor that a classifier of texts has and one of tokens need not
    have. ValueError for a head of another class.
    """
    said = _architecture(values)
    if "MultipleChoice" in said:
        raise ValueError(
            f"config.json is of {said}; heads of {', '.join(_CLASSES.values())} are supported"
        )
    if not names & {"classifier.weight", "classifier.out_proj.weight", "qa_outputs.weight"}:
        return {}
    # Most tell them by their tensors; in BERT and ModernBERT these may be alike.
    if "qa_outputs.weight" in names or _CLASSES["spans"] in said:
        return {"labels": 2, "labels_over": "spans"}
    of_texts = any(name.endswith(text_layer) for name in names)
    tokens = _CLASSES["tokens"] in said or not of_texts
    return {"labels": count_labels(values), "labels_over": "tokens" if tokens else "text"}


def count_labels(values: Mapping[str, Any]) -> int:
    """The number of classes of a classifier, by config.json."""
    # transformers writes the labels' names and leaves out their number, which it takes from them.
    labels = values.get("id2label")
    if isinstance(labels, Mapping) and labels:
        return len(labels)
    return integer(values, "num_labels", 2)


def refuse_other_classes(values: Mapping[str, Any]) -> None:
    """ValueError for a decoder with a head of another class than that of whole texts, whose tensors
    may have the same names."""
    said = _architecture(values)
    if any(job in said for job in ("TokenClass", "QuestionAnswering", "MultipleChoice")):
        raise ValueError(
            f"config.json is of {said}; of decoders' classifiers, those of whole texts are "
            "supported (ForSequenceClassification)"
        )


def labelled_class(start: str, c: ModelConfig) -> str:
    """The class of a model with labels, such as "BertForTokenClassification"."""
    return start + _CLASSES[c.labels_over]


def write_labels(c: ModelConfig) -> dict[str, Any]:
    """The names of a classifier's classes in config.json, {} without one. The two scores of an
    answer's ends are no classes."""
    if not c.labels or c.labels_over == "spans":
        return {}
    # transformers' own names where nobody gave others; JSON wants strings as keys.
    labels = {str(n): f"LABEL_{n}" for n in range(c.labels)}
    return {"id2label": labels, "label2id": {name: int(n) for n, name in labels.items()}}


def label_rules(c: ModelConfig, spans: str = "qa_outputs") -> list[Rule]:
    """The tensors of the classifier's own layer, [] without one; `spans` is its name where it
    scores the ends of an answer."""
    if not c.labels:
        return []
    name = spans if c.labels_over == "spans" else "classifier"
    return [
        Rule(f"{name}.weight", "classifier/kernel", "C D -> D C"),
        Rule(f"{name}.bias", "classifier/bias", "C -> C"),
    ]


def _architecture(values: Mapping[str, Any]) -> str:
    return " ".join(map(str, values.get("architectures") or ()))
