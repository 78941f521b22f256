"""MPNet (arXiv:2004.09297) in Hugging Face's names: RoBERTa's layers and heads without token types,
and T5's offsets of scores by distance, which all layers share.
"""

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from research.interop.huggingface.families import roberta
from research.interop.huggingface.families.fields import index, integer, refuse
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig
from research.models.embedding import BUCKETS

# Of RoBERTa's names, the starts and parts that differ.
_START = "mpnet."
_PARTS = {
    "attention.self.query": "attention.attn.q",
    "attention.self.key": "attention.attn.k",
    "attention.self.value": "attention.attn.v",
    "attention.output.dense": "attention.attn.o",
    "attention.output.LayerNorm": "attention.LayerNorm",
}


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json and the tensors' `names` describe. ValueError for settings that
    our layers do not compute."""
    refuse(values, relative_attention_num_buckets=BUCKETS)
    # The class counts positions from 2, whatever the id of padding.
    if index(values, "pad_token_id", 1) != 1:
        raise ValueError(
            f"config.json has pad_token_id={values['pad_token_id']}; 1 is the class's own padding"
        )
    sizes = {"vocab_size": integer(values, "vocab_size", 30527), "type_vocab_size": 1}
    values = {**values, **sizes}
    as_roberta = roberta.read_config(values, {_roberta_name(name) for name in names})
    return replace(as_roberta, token_types=0, embedding_norm=True, score_offsets=True)


def serves(c: ModelConfig) -> bool:
    """True for an encoder with learned positions whose scores have offsets by distance."""
    return c.score_offsets and roberta.serves(replace(c, score_offsets=False))


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json, for the class that has the model's heads."""
    values = roberta.write_config(c)
    del values["type_vocab_size"]
    names = [name.replace("Roberta", "MPNet") for name in values["architectures"]]
    own = {"architectures": names, "model_type": "mpnet", "relative_attention_num_buckets": BUCKETS}
    return values | own


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """The tensors of MPNetForMaskedLM and of the classes with labels that the model has, as rules
    that read both ways."""
    kept = [rule for rule in roberta.rules(c) if rule.path != "embed/types"]
    offsets = f"{_START}encoder.relative_attention_bias.weight"
    return (
        *(replace(rule, name=_name(rule.name)) for rule in kept),
        Rule(offsets, "relative/table", "U N -> U N"),
    )


def _name(name: str) -> str:
    """The name here of one of RoBERTa's tensors."""
    for theirs, own in _PARTS.items():
        name = name.replace(theirs, own)
    return name.replace("roberta.", _START, 1) if name.startswith("roberta.") else name


def _roberta_name(name: str) -> str:
    """RoBERTa's name of the tensor with a name here, of those that tell a model's heads."""
    return name.replace(_START, "roberta.", 1) if name.startswith(_START) else name


FAMILY = replace(
    roberta.FAMILY,
    model_types=("mpnet",),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    prefix=_START,
    unused=(
        (r"mpnet\.embeddings\.position_ids", "0, 1, 2, ..."),
        (r"mpnet\.pooler\..*", "the bare model's pooler, which its classifiers do not read"),
    ),
    classes={},
)
