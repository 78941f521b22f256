"""Decoders that score a text in place of predicting words: transformers' *ForSequenceClassification
over any decoder, whose head `score` reads the last token's state. With one label it is a reward
model.
"""

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from research.interop.huggingface.families.labels import (
    count_labels,
    refuse_other_classes,
    write_labels,
)
from research.interop.storage.family import Family
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig

_SCORE = "score.weight"
# Families of which transformers has no such class.
_WITHOUT = ("granite", "olmoe")


def with_scores(family: Family) -> Family:
    """The family of decoders, which also reads and writes its models with labels."""

    def _read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
        c = family.read_config(values, names)
        if _SCORE not in names:
            return c
        refuse_other_classes(values)
        return replace(c, labels=count_labels(values))

    def _write_config(c: ModelConfig) -> dict[str, Any]:
        values = family.write_config(replace(c, labels=0))
        if not c.labels:
            return values
        # LlamaForCausalLM, GPT2LMHeadModel.
        plain = values["architectures"][0].removesuffix("ForCausalLM").removesuffix("LMHeadModel")
        if values["model_type"] in _WITHOUT:
            raise ValueError(f"transformers has no {plain}ForSequenceClassification to score texts")
        name = f"{plain}ForSequenceClassification"
        return {**values, "architectures": [name], **write_labels(c)}

    def _rules(c: ModelConfig) -> tuple[Rule, ...]:
        if not c.labels:
            return family.rules(c)
        # A tied model has no tensors of a head for words, and neither has this one.
        body = family.rules(replace(c, labels=0, tied=True, head_bias=False))
        return (*body, Rule(_SCORE, "classifier/kernel", "C D -> D C"))

    return replace(
        family,
        serves=lambda c: family.serves(replace(c, labels=0) if c.scores_texts else c),
        read_config=_read_config,
        write_config=_write_config,
        rules=_rules,
    )
