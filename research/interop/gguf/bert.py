"""The architecture bert: BERT, RoBERTa and DistilBERT as models of sentence embeddings.

A file holds the encoder's body: no masked-LM head, and of RoBERTa's positions no rows before the
first one. A classifier of texts, as BERT and RoBERTa have it, comes with its pooler: llama.cpp's
head for ranking is the same two layers.
"""

from dataclasses import replace
from typing import Any

from research.interop.gguf.architecture import (
    Architecture,
    Metadata,
    check_square,
    gelu_note,
    read_shape,
    write_shape,
)
from research.interop.storage.layout import Rule, norm_rules
from research.models.config import ModelConfig

POSITIONS = "embed/positions"
_WITHOUT_HEADS = dict(pooler=False, mlm_head=False, labels=0, labels_over="text")
_POOLER, _CLASSES = "cls.weight", "cls.output.weight"


def read_config(m: Metadata) -> ModelConfig:
    """The model that a file's metadata describes. ValueError for a classifier without a pooler."""
    types, classes = m.tensors.get("token_types.weight"), m.tensors.get(_CLASSES)
    if classes and _POOLER not in m.tensors:
        raise ValueError(
            f"the file has {_CLASSES} and no {_POOLER}; BERT's classifier has a pooler"
        )
    return ModelConfig(
        **read_shape(m, kind="encoder", norm="layer"),
        position="learned",
        norm_after=True,
        activation="gelu",
        gated=False,
        attention_bias="all",
        mlp_bias=True,
        token_types=types.shape[0] if types else 0,
        labels=classes.shape[0] if classes else 0,
        pooler=classes is not None,
        **_other_heads(types is None),
    )


def _other_heads(distilled: bool) -> dict[str, Any]:
    """The fields of `ModelConfig` that an encoder without heads keeps for those it may get, as
    BERT's family and DistilBERT's have them; only the second has no token types."""
    if distilled:
        return {"embedding_norm": True, "pooler_layer": "relu"}
    return {"embedding_norm": False, "pooler_layer": "tanh"}


def name_of(c: ModelConfig) -> str | None:
    """ "bert" for an encoder with learned positions and no others."""
    learned = c.kind == "encoder" and c.position == "learned" and not c.score_offsets
    return "bert" if learned else None


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The metadata of a model. ValueError for heads of another width."""
    check_square(c, "bert")
    values = {key: x for key, x in write_shape(c, "bert").items() if ".rope." not in key}
    # llama.cpp wants at least one type, whether or not there is a table of them.
    types = {"tokenizer.ggml.token_type_count": max(1, c.token_types)}
    return values | types | {"bert.attention.causal": False}


def rules(c: ModelConfig, name: str) -> tuple[Rule, ...]:
    """The tensors of an encoder's body and of its classifier."""
    block, ours = "blk.{layer}", "layers"
    found = [
        Rule("token_embd.weight", "embed/table", "V D -> V D"),
        Rule("position_embd.weight", POSITIONS, "P D -> P D"),
        Rule(f"{block}.attn_output.weight", f"{ours}/attention/out", "D (N H) -> N H D"),
        Rule(f"{block}.attn_output.bias", f"{ours}/attention/out_bias", "D -> D"),
        Rule(f"{block}.ffn_up.weight", f"{ours}/mlp/up", "F D -> D F"),
        Rule(f"{block}.ffn_up.bias", f"{ours}/mlp/up_bias", "F -> F"),
        Rule(f"{block}.ffn_down.weight", f"{ours}/mlp/down", "D F -> F D"),
        Rule(f"{block}.ffn_down.bias", f"{ours}/mlp/down_bias", "D -> D"),
        *norm_rules("token_embd_norm", "embed/norm"),
        *norm_rules(f"{block}.attn_output_norm", f"{ours}/attention_norm"),
        *norm_rules(f"{block}.layer_output_norm", f"{ours}/mlp_norm"),
    ]
    for letter, role in (("q", "query"), ("k", "key"), ("v", "value")):
        place, path = f"{block}.attn_{letter}", f"{ours}/attention/{role}"
        found.append(Rule(f"{place}.weight", path, "(N H) D -> D N H"))
        found.append(Rule(f"{place}.bias", f"{path}_bias", "(N H) -> N H"))
    if c.labels:
        found.append(Rule(_POOLER, "pooler/kernel", "M D -> D M"))
        found.append(Rule("cls.bias", "pooler/bias", "D -> D"))
        found.append(Rule(_CLASSES, "classifier/kernel", "C D -> D C"))
        found.append(Rule("cls.output.bias", "classifier/bias", "C -> C"))
    if c.token_types:
        found.append(Rule("token_types.weight", "embed/types", "Y D -> Y D"))
    return tuple(found)


def _classifies(c: ModelConfig) -> bool:
    """True for a classifier that llama.cpp computes: the first token's state through a layer and
    tanh. DistilBERT's, which goes through a ReLU, has no token types."""
    reads_first = c.pooler and c.pooling == "first" and c.pooler_layer == "tanh"
    return c.labels > 0 and c.labels_over == "text" and reads_first and c.token_types > 0


def bare(c: ModelConfig) -> ModelConfig:
    """An encoder as a file has it, without heads but for a classifier of texts."""
    if _classifies(c):
        return replace(c, mlm_head=False, position_offset=0, transform_bias=True)
    plain = {"pooling": "first", "transform_bias": True, **_other_heads(not c.token_types)}
    return replace(c, **_WITHOUT_HEADS, position_offset=0, **plain)


ARCHITECTURE = Architecture(
    names=("bert",),
    name_of=name_of,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    notes=gelu_note,
)
