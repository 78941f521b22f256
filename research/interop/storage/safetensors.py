"""safetensors files: several are opened as one set of tensors, and files are written as a stream,
one tensor at a time."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from research.files import read_json
from research.interop.storage.tensors import Tensor, as_dtype

INDEX = "{stem}.safetensors.index.json"
SHARD_BYTES = 5 * 1000**3  # of one file, as transformers cuts them
# The format's names of element types; others that it has, such as C64, are refused by name.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U32": "uint32",
    "U8": "uint8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "BOOL": "bool",
}
_CODES = {name: code for code, name in _DTYPES.items()}


@dataclass(frozen=True)
class SafeTensors:
    """The tensors of one or more files, by name; nothing is read before `read` is called."""

    names: Mapping[str, Tensor]
    _places: Mapping[str, tuple[Path, int]] = field(repr=False)

    def read(self, name: str) -> np.ndarray:
        """The whole tensor."""
        return self.read_row(name, ())

    def read_row(self, name: str, index: tuple[int, ...]) -> np.ndarray:
        """`tensor[index]` for an index over its first axes; only these bytes are read."""
        tensor = self.names[name]
        shape = tensor.shape[len(index) :]
        # C order: a slice over leading axes is one run of bytes.
        row = int(np.ravel_multi_index(index, tensor.shape[: len(index)])) if index else 0
        count = math.prod(shape)
        values = np.empty(count, as_dtype(tensor.dtype))
        self.fill(name, row * count, values.view(np.uint8))
        return values.reshape(shape)

    def place(self, name: str) -> tuple[str, int]:
        """(file, first byte) of a tensor."""
        path, offset = self._places[name]
        return str(path), offset

    def fill(self, name: str, start: int, memory: np.ndarray) -> None:
        """Reads the bytes of a tensor from its element `start` on into uint8 memory, until it is
        full. ValueError where the file ends before."""
        # Not mapped: mapped pages would count as this process's memory, all of a checkpoint in the
        # end.
        path, offset = self._places[name]
        offset += start * as_dtype(self.names[name].dtype).itemsize
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            done, view = 0, memoryview(memory)
            # One call of the system reads 2 GiB at most.
            while done < memory.size:
                if not (count := file.readinto(view[done:])):
                    raise ValueError(
                        f"{path} ends {memory.size - done:,} bytes early; fetch it again"
                    )
                done += count


def open_safetensors(folder: Path, stem: str = "model") -> SafeTensors:
    """All tensors of `stem`.safetensors in a folder, of the files that its index names, or of all
    shards where the index is missing.

    ValueError, in one line, for a missing file or tensor, a damaged header, and an index that names
    files outside the folder.
    """
    index = folder / INDEX.format(stem=stem)
    where = _read_index(index) if index.is_file() else None
    if where:
        paths = [folder / name for name in sorted(set(where.values()))]
    else:
        paths = _without_index(folder, stem)
    names: dict[str, Tensor] = {}
    places = {}
    for path in paths:
        for name, (tensor, offset) in _read_header(path).items():
            if name in names:
                raise ValueError(
                    f"{path} has {name!r}, which another file of {folder} has too; keep one of them"
                )
            if where is not None and where.get(name) != path.name:
                raise ValueError(
                    f"{path} has {name!r}, which is not where {index.name} says; restore the index"
                )
            names[name], places[name] = tensor, (path, offset)
    missing = sorted(set(where or ()) - set(names))
    if missing:
        raise ValueError(
            f"{index} names {missing[0]!r} and {len(missing) - 1} more tensors that its files lack"
        )
    return SafeTensors(names, places)


def _without_index(folder: Path, stem: str) -> list[Path]:
    """The one file of a folder without an index, or all shards, whose names say how many there are:
    what an index says, their headers say too. ValueError, with its name, for a shard that is
    missing."""
    shards = {}
    for path in folder.glob(f"{stem}-*-of-*.safetensors"):
        if match := re.fullmatch(rf"{re.escape(stem)}-\d+-of-(\d+)\.safetensors", path.name):
            shards[path.name] = match[1]
    single = folder / f"{stem}.safetensors"
    if single.is_file() or not shards:
        return [single]
    total, paths = max(shards.values(), key=int), []
    for n in range(1, int(total) + 1):
        name = f"{stem}-{n:0{len(total)}}-of-{total}.safetensors"
        if name not in shards:
            raise ValueError(f"{folder / name} is missing; give the whole checkpoint folder")
        paths.append(folder / name)
    return paths


def _read_header(path: Path) -> dict[str, tuple[Tensor, int]]:
    """The tensors of a file, each with the offset of its first byte."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; give the whole checkpoint folder")
    try:
        # The library checks the header: its length, the offsets, that nothing overlaps. It does not
        # tell where tensors lie, and its slices read the whole tensor, so the header is read again.
        with safe_open(path, framework="numpy", backend="pread"), open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}); fetch it again") from None
    # Free text for people, such as {"format": "pt"}; it is no tensor.
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise ValueError(
                f"{path}: {name!r} is of type {entry['dtype']}; wanted one of {', '.join(_DTYPES)}"
            )
        tensor, (start, stop) = (
            Tensor(tuple(entry["shape"]), _DTYPES[entry["dtype"]]),
            entry["data_offsets"],
        )
        if stop - start != nbytes(tensor):
            raise ValueError(
                f"{path}: {name!r} has {stop - start} bytes for {tensor}; fetch it again"
            )
        # Offsets count from the end of the header, which is 8 bytes of length and then JSON.
        tensors[name] = (tensor, 8 + length + start)
    return tensors


def _read_index(file: Path) -> dict[str, str]:
    content = read_json(file)
    where = content.get("weight_map") if isinstance(content, dict) else None
    if (
        not isinstance(where, dict)
        or not where
        or not all(isinstance(name, str) for name in where.values())
    ):
        raise ValueError(
            f"{file} has no weight_map of tensors to files; restore it from the source"
        )
    for name in where.values():
        # An index comes from a download: it must not make us read files elsewhere.
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise ValueError(
                f"{file} names the file {name!r}; a shard must lie in the folder itself"
            )
    return where


Parts = Callable[[], Iterable[np.ndarray]]


def write_safetensors(
    folder: Path,
    tensors: Mapping[str, tuple[Tensor, Parts]],
    stem: str = "model",
    metadata: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Writes the tensors in order and returns the names of the files: `stem`.safetensors, or
    several files and their index if one would exceed `shard_bytes`.

    Each tensor comes as a function that yields arrays whose bytes, one after the other, are the
    tensor's, so that no more than one of them is in memory. ValueError if they do not add up to the
    tensor.
    """
    # Sizes are known before the values, so files are divided and headers written first. A tensor
    # above the limit gets a file of its own.
    shards: list[dict[str, tuple[Tensor, Parts]]] = [{}]
    filled = 0
    for name, (tensor, parts) in tensors.items():
        if shards[-1] and filled + nbytes(tensor) > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = (tensor, parts)
        filled += nbytes(tensor)
    count = len(shards)
    files = (
        [f"{stem}.safetensors"]
        if count == 1
        else [f"{stem}-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    )
    for file, shard in zip(files, shards):
        _write_file(folder / file, shard, metadata or {})
    if count > 1:
        total = sum(nbytes(tensor) for tensor, _ in tensors.values())
        where = {name: file for file, shard in zip(files, shards) for name in shard}
        index = folder / INDEX.format(stem=stem)
        index.write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2) + "\n"
        )
        files.append(index.name)
    return files


def nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor as it is stored."""
    return math.prod(tensor.shape) * as_dtype(tensor.dtype).itemsize


def _write_file(
    path: Path, shard: Mapping[str, tuple[Tensor, Parts]], metadata: Mapping[str, str]
) -> None:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    # Wide types first, so that every tensor begins at a multiple of its element's size.
    order = sorted(shard, key=lambda name: -as_dtype(shard[name][0].dtype).itemsize)
    end = 0
    for name in order:
        tensor = shard[name][0]
        start, end = end, end + nbytes(tensor)
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    # The format wants data to begin at a multiple of 8 bytes; JSON allows spaces at its end.
    text += b" " * (-len(text) % 8)
    # Exclusive: a file that is there is never overwritten.
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensor, parts = shard[name]
            written = 0
            try:
                for part in parts():
                    part = np.ascontiguousarray(part, as_dtype(tensor.dtype))
                    file.write(part.reshape(-1).view(np.uint8))
                    written += part.nbytes
            except ValueError as error:  # of what makes the values, which does not know the name
                raise ValueError(f"tensor {name!r} cannot be written: {error}") from None
            if written != nbytes(tensor):
                raise ValueError(
                    f"{name} came as {written} bytes, wanted {nbytes(tensor)} for {tensor}"
                )
