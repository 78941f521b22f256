"""Certificates: what a conversion was made from, what it made, and that nothing was lost on the
way.

`certificate.json` lies in the folder it speaks of. Whoever loads that folder has its files compared
with the hashes first.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from research.files import read_json, write_json
from research.interop.storage.checkpoint import Checkpoint, Read
from research.interop.storage.norm_offset import with_norm_offset

FILE = "certificate.json"
_FORMAT = "graft certificate 1"


def certify(
    source: Checkpoint, target: Checkpoint, folder: Path, reference: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Writes the certificate of `folder`, which `target` was opened from, and returns it.

    ValueError where the target is not what a conversion of the source has to be: nothing is
    certified then.
    """
    body = {
        "format": _FORMAT,
        "source": {
            "name": str(source.source),
            "format": source.format,
            "files": hash_files(source.source),
        },
        "target": {"format": target.format, "files": hash_files(folder)},
        "tensors": {
            "parameters": len(source.parameters),
            "unused": dict(source.unused),
            "missing": [],
        },
        "round_trip": round_trip(source, target),
        "reference": reference,
    }
    write_json(folder / FILE, {**body, "sha256": _digest(body)})
    return body


def round_trip(source: Checkpoint, target: Checkpoint) -> dict[str, Any]:
    """Compares the source, tensor by tensor, with what the target gives when it is converted back.

    `tensors` compared, `bit_equal` of them the same bits, and where the target holds another type
    than the source `largest_error` and `root_mean_square_error`. ValueError where the types are the
    same and the bits are not.
    """
    # Both as the source holds the scales of norms, which the way there may have rounded.
    rescaled = source.config.norm_offset != target.config.norm_offset
    target = with_norm_offset(target, source.config.norm_offset)
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
            largest, squares = (
                max(largest, float(error.max())),
                squares + float(np.square(error, dtype=np.float64).sum()),
            )
    found: dict[str, Any] = {"tensors": compared, "bit_equal": equal}
    return (
        found
        if equal == compared
        else found | {"largest_error": largest, "root_mean_square_error": (squares / size) ** 0.5}
    )


def check_hashes(folder: Path) -> dict[str, Any] | None:
    """The certificate of a folder, None where it has none. ValueError where it was changed, or a
    file it speaks of was."""
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
    """sha256 of a file, or of the files of a folder by their names in it, the certificate's and
    hidden ones aside."""
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
    """Name, what reads it in the source and in the target, of every tensor: in the source's own
    names and layout."""
    if source.original is not None:
        yield from source.original(target.parameters)
        return
    for path, parameter in source.parameters.items():
        for index in parameter.indices():
            yield path, partial(parameter.read, index), partial(target.parameters[path].read, index)


def _hash_array(values: np.ndarray) -> tuple[str, int]:
    """What says type, shape and bits, and the number of elements."""
    content = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return f"{values.dtype} {values.shape} {hashlib.sha256(content).hexdigest()}", values.size


def _hash(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
