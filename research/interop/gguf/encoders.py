"""What a GGUF file holds of an encoder: its body, how a text becomes one vector, and of some a
classifier with the names of its classes."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from research.interop.gguf import bert, modernbert
from research.interop.storage.checkpoint import Checkpoint, specs_by_path
from research.interop.storage.label_names import read_label_names
from research.interop.storage.parameter import Parameter

# llama.cpp's numbers of enum llama_pooling_type.
_POOLING = {"mean": 1, "cls": 2}
_RANK = 4  # a classifier's scores in place of a vector
_LABELS = "classifier.output_labels"
_ENCODERS = (bert, modernbert)


def body(checkpoint: Checkpoint) -> tuple[Checkpoint, list[str]]:
    """(what such a file holds of an encoder, lines on what it does not); other models as they
    are."""
    c = checkpoint.config
    kinds = [one for one in _ENCODERS if one.name_of(c) is not None]
    if not kinds:
        return checkpoint, []
    kept = kinds[0].bare(c)
    heads = {
        "pooler": c.pooler and not kept.pooler,
        "masked-LM head": c.mlm_head,
        "classifier": c.labels > 0 and not kept.labels,
    }
    left_out = [name for name, there in heads.items() if there]
    if kept == c:
        return checkpoint, []
    parameters = {path: checkpoint.parameters[path] for path in specs_by_path(kept)}
    if c.position_offset:
        parameters[bert.POSITIONS] = _from_row(parameters[bert.POSITIONS], c.position_offset)
    notes = [f"a GGUF file has no {' and no '.join(left_out)} of an encoder"] if left_out else []
    # The tensors of the source are more than these, so the parameters themselves are compared.
    return replace(checkpoint, config=kept, parameters=parameters, original=None), notes


def _from_row(table: Parameter, first: int) -> Parameter:
    rows, *rest = table.shape

    def _read(index: tuple[int, ...]) -> np.ndarray:
        return table.read(index)[first:]

    return replace(table, shape=(rows - first, *rest), read=_read)


def write_pooling(checkpoint: Checkpoint, kind: str) -> dict[str, Any]:
    """The metadata, under the architecture `kind`, on how a text becomes one vector, or which
    classes it is scored for; {} for a model that is no encoder."""
    if checkpoint.config.kind != "encoder":
        return {}
    if count := checkpoint.config.labels:
        names = checkpoint.labels or read_label_names(checkpoint.source, count)
        return {_key(kind): _RANK, f"{kind}.{_LABELS}": [str(name) for name in names]}
    return {_key(kind): _POOLING[checkpoint.sentence_settings.pooling]}


def pooling_files(values: Mapping[str, Any]) -> dict[str, bytes]:
    """The contents of sentence-transformers' file on it by name, {} where the metadata does not
    say."""
    names = {1: "pooling_mode_mean_tokens", 2: "pooling_mode_cls_token"}
    name = names.get(values.get(_key(values.get("general.architecture", "")), 0))
    return {"1_Pooling/config.json": json.dumps({name: True}).encode()} if name else {}


def read_labels(values: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """The names of a file's `count` classes, empty where it does not have so many."""
    names = values.get(f"{values.get('general.architecture', '')}.{_LABELS}") or ()
    return tuple(map(str, names)) if len(names) == count else ()


def _key(kind: str) -> str:
    return f"{kind}.pooling_type"
