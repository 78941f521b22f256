"""Certificates of conversions: hashes of source and target, how many tensors survive the way there
and back bit by bit, and whether the reader that the target is for sees the same tokenizer, chat
template and ends of a text.

`certificate.json` lies in the converted folder. `open_checkpoint` compares that folder's files with
the hashes before it reads any of them.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from research.downloads import hub
from research.files import read_json, write_json
from research.interop import beside
from research.interop.storage.checkpoint import Checkpoint, Read
from research.interop.storage.norm_offset import with_norm_offset
from research.models.config import Shape

FILE = "certificate.json"
# Raise it when a reader of older certificates would misunderstand a new one; added entries do not.
_FORMAT = "graft certificate 1"


def certify(
    source: Checkpoint,
    target: Checkpoint,
    folder: Path,
    reference: Mapping[str, Any] | None,
    dtype: str = "",
    adapter: str | Path = "",
    notes: Sequence[str] = (),
    origin: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes the certificate of `folder`, which `target` was opened from, and returns it.

    `reference` is what `research.interop.reference.compare` returned, `dtype` the type that was
    asked for, "" for the source's, `adapter` what was merged into the source, `notes` lines on what
    the format cannot hold or its reader ignores, and `origin` what stands for a source that is no
    one path, such as a merge of several. ValueError, before anything is written, where
    a lossless conversion does not give the source's bits back, and where the target's config
    describes another computation.
    """
    body = {
        "format": _FORMAT,
        "source": dict(origin) if origin else _describe_source(source, adapter),
        "target": {
            "format": target.format,
            "dtype": dtype,
            "quantized": target.quantized,
            "files": hash_files(folder),
        },
        "model": _same_model(source, target),
        "special": dict(target.special),
        "tensors": {
            "parameters": len(source.parameters),
            "unused": dict(source.unused),
            "missing": [],
        },
        "round_trip": round_trip(source, target),
        "beside": beside.compare(source, target, folder),
        "notes": list(notes),
        "reference": reference,
    }
    # The digest finds an edited certificate; it is no signature, for anybody can compute it.
    write_json(folder / FILE, {**body, "sha256": _digest(body)})
    return body


def _describe_source(source: Checkpoint, adapter: str | Path) -> dict[str, Any]:
    return {
        "name": str(source.source),
        "format": source.format,
        "files": hash_files(source.source),
        **({"stored_as": source.stored_as} if source.stored_as else {}),
        **_describe_hub(source.source),
        **_describe_adapter(adapter),
    }


def _describe_hub(path: Path) -> dict[str, str]:
    """The spelling of a model of the hub with its commit, by which it can be fetched again."""
    spelling = hub.pinned(path)
    return {"hub": spelling} if spelling else {}


def _describe_adapter(adapter: str | Path) -> dict[str, Any]:
    if not adapter:
        return {}
    path = Path(adapter).expanduser()
    return {"adapter": str(path), "adapter_files": hash_files(path)}


def round_trip(source: Checkpoint, target: Checkpoint) -> dict[str, Any]:
    """Compares the source, tensor by tensor, with the target converted back to the source's format.

    Returns `tensors`, the number compared, and `bit_equal`, how many have the same bits; where not
    all have, also `largest_error` and `root_mean_square_error` over all values. ValueError where
    types are the same, so that bits should be, and are not.
    """
    # Norms of Gemma are stored as w in one format and as 1 + w in another, and 1 + w rounds.
    rescaled = source.config.norm_offset != target.config.norm_offset
    target = with_norm_offset(target, source.config.norm_offset)
    # Only then does equality of bits follow; a narrower type, blocks of a quantized one and norms
    # that were rescaled lose something, and how much is measured instead.
    same_types = all(
        source.parameters[path].dtype == target.parameters[path].dtype for path in source.parameters
    )
    lossless = same_types and not target.quantized and not rescaled
    compared, equal, largest, squares, size = 0, 0, 0.0, 0.0, 0
    for name, read, make in _pairs(source, target):
        compared += 1
        # By hashes, one after the other: two of the largest tensor at once would double a
        # conversion's memory.
        (before, count), (after, _) = _hash_array(read()), _hash_array(make())
        size += count
        if before == after:
            equal += 1
        elif lossless:
            raise ValueError(
                f"{name} is not the same after the way to {target.source} and back; convert it "
                "again"
            )
        else:
            error = np.abs(read().astype(np.float32) - make().astype(np.float32))
            largest = max(largest, float(error.max()))
            # A sum of a billion squares in float32 would stop growing.
            squares += float(np.square(error, dtype=np.float64).sum())
    counts: dict[str, Any] = {"tensors": compared, "bit_equal": equal}
    if equal == compared:
        return counts
    return counts | {"largest_error": largest, "root_mean_square_error": (squares / size) ** 0.5}


def _same_model(source: Checkpoint, target: Checkpoint) -> dict[str, Any]:
    """The fields of `Shape`, which say what the parameters compute, as both have them; ValueError
    for one that the target's config gives another value."""
    # How norms are stored is each format's own; `round_trip` compares their values.
    names = [field.name for field in dataclasses.fields(Shape) if field.name != "norm_offset"]
    ours, theirs = (dataclasses.asdict(checkpoint.config) for checkpoint in (source, target))
    for name in names:
        if ours[name] != theirs[name]:
            raise ValueError(
                f"{target.source} came out with model.{name}={theirs[name]!r}, the source has "
                f"{ours[name]!r}; choose another format"
            )
    return {name: ours[name] for name in names}


def check_hashes(folder: Path) -> dict[str, Any] | None:
    """The certificate of a folder after its hashes were checked, None where the folder has none.

    ValueError where the certificate was edited, and where a file it lists is missing or differs.
    """
    if not (folder / FILE).is_file():
        return None
    certificate = read_json(folder / FILE)
    try:
        signature = certificate.pop("sha256")
        files = certificate["target"]["files"]
    except (AttributeError, KeyError, TypeError):
        raise ValueError(
            f"{folder / FILE} is no certificate; remove it, or convert the checkpoint again"
        ) from None
    if signature != _digest(certificate):
        raise ValueError(f"{folder / FILE} was changed; convert the checkpoint again")
    for name, wanted in files.items():
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} lacks {name}, which its certificate speaks of; convert the checkpoint "
                "again"
            )
        if _hash(folder / name) != wanted:
            raise ValueError(
                f"{folder / name} is not the file that was certified; convert the checkpoint again"
            )
    return certificate


def hash_files(path: Path) -> dict[str, str]:
    """sha256 by name: of a file, or of every file in a folder and below it.

    The certificate itself is left out, for it holds these hashes, and so are hidden files, such as
    the `.cache` that downloaders leave behind.
    """
    if path.is_file():
        return {path.name: _hash(path)}
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != FILE)
    names = [file.relative_to(path) for file in files]
    return {
        name.as_posix(): _hash(path / name)
        for name in names
        if not any(part.startswith(".") for part in name.parts)
    }


def _pairs(source: Checkpoint, target: Checkpoint) -> Iterator[tuple[str, Read, Read]]:
    """(name, read it from the source, make it from the target) of every tensor, in the source's own
    names and layout."""
    # A foreign source is compared in its own tensors, so that the rules of its family are tested on
    # the way out as well as on the way in.
    if source.original is not None:
        yield from source.original(target.parameters)
        return
    # Our own formats have no foreign tensors: the slices of parameters are compared themselves.
    for path, parameter in source.parameters.items():
        for index in parameter.indices():
            yield path, partial(parameter.read, index), partial(target.parameters[path].read, index)


def _hash_array(values: np.ndarray) -> tuple[str, int]:
    """(a text that differs where type, shape or bits differ, number of elements)."""
    # As bytes, for hashlib takes no bfloat16 buffers.
    content = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return f"{values.dtype} {values.shape} {hashlib.sha256(content).hexdigest()}", values.size


def _hash(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# Keys are sorted, so that a certificate written by another version in another order has its digest.
def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
