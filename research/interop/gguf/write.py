"""Writing GGUF files, version 3: one tensor in memory at a time, and the whole file or none of
it."""

import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import quantize

from research.files import replacing
from research.interop.gguf import k_quants
from research.interop.gguf.file import STORED
from research.interop.gguf.header import (
    ALIGNMENT,
    ALIGNMENT_KEY,
    MAGIC,
    MAX_DIMS,
    MAX_NAME_BYTES,
    SCALARS,
    check_alignment,
    check_name,
)

# Types that can be written. Those of `k_quants` the package reads and does not write.
K_TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4", *K_TYPES)
_LONGEST_NAME = 63  # bytes of a tensor's name: llama.cpp's GGML_MAX_NAME is 64 with the final zero
_CHUNK = 1 << 20  # elements converted at a time, a multiple of every type's block
_KINDS = {np.dtype(kind): number for number, kind in SCALARS.items()}

# (name, shape in numpy's order, one of TYPES, function). The function returns the array, or yields
# it in pieces of whole rows, in order; pieces of uint8 for a quantized type are its stored blocks.
Entry = tuple[str, Sequence[int], str, Callable[[], np.ndarray | Iterable[np.ndarray]]]


def write_gguf(
    path: str | os.PathLike, metadata: Mapping[str, Any], tensors: Iterable[Entry]
) -> None:
    """Writes a GGUF file under a temporary name and renames it when it is complete. The functions
    of `tensors` are called one after the other.

        weights = np.ones((2, 32), np.float32)
        write_gguf("a.gguf", {"general.name": "a"}, [("w", (2, 32), "Q8_0", lambda: weights)])

    Metadata values are bools, strings, numbers, lists of these, and numpy arrays and scalars, whose
    types are kept. An int becomes uint32 where it fits (int32 in a list), a float float32.
    ValueError, one line, for rows that are not whole blocks of a quantized type, for values that
    the type cannot hold, and for arrays of another shape than announced.
    """
    path = Path(path)
    entries = [(name, tuple(map(int, shape)), kind, give) for name, shape, kind, give in tensors]
    alignment = check_alignment(metadata.get(ALIGNMENT_KEY, ALIGNMENT))
    # The layout that `research.interop.gguf.header` describes, in the same order.
    header = [MAGIC, struct.pack("<IQQ", 3, len(entries), len(metadata))]
    header += [_text(key, MAX_NAME_BYTES) + _value(key, value) for key, value in metadata.items()]
    # Sizes follow from shapes, so all offsets are known before any array is asked for.
    offset, seen = 0, set()
    for name, shape, kind, _ in entries:
        _check(name, shape, kind, seen)
        number = GGMLQuantizationType[kind]
        # ggml lists the fastest axis first, numpy the slowest.
        row = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], number, offset)
        # Offsets count from the start of the data, which follows the padded header.
        header.append(_text(name, _LONGEST_NAME) + row)
        offset += _nbytes(shape, kind)
        offset += -offset % alignment
    try:
        # A reader never sees half a file: it appears under its name when all of it is written.
        with replacing(path) as file:
            file.write(b"".join(header))
            file.write(bytes(-file.tell() % alignment))
            for name, shape, kind, give in entries:
                try:
                    _write_tensor(file, shape, kind, give())
                except ValueError as error:
                    raise ValueError(
                        f"tensor {name!r} cannot be written to {path} as {kind}: {error}"
                    ) from None
                file.write(bytes(-file.tell() % alignment))
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}); choose another target"
        ) from None


def _check(name: str, shape: tuple[int, ...], kind: str, seen: set[str]) -> None:
    """Refuses a line of the table that a reader would refuse, before anything is written."""
    check_name(name)
    if name in seen:
        raise ValueError(f"tensor {name!r} is there twice")
    seen.add(name)
    if kind not in TYPES:
        raise ValueError(
            f"tensor {name!r}: type {kind!r} is not written; wanted one of {', '.join(TYPES)}"
        )
    block = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]
    if not 1 <= len(shape) <= MAX_DIMS or min(shape) < 1:
        raise ValueError(
            f"tensor {name!r} is {list(shape)}; wanted 1 to {MAX_DIMS} dimensions, none of them "
            "empty"
        )
    if shape[-1] % block:
        raise ValueError(
            f"tensor {name!r} has rows of {shape[-1]}, wanted a multiple of {block} for {kind}; "
            "use F16"
        )


def _write_tensor(
    file: BinaryIO, shape: tuple[int, ...], kind: str, given: np.ndarray | Iterable[np.ndarray]
) -> None:
    """Writes one tensor's data, from a whole array or from its pieces."""
    written = 0
    for array in [given] if isinstance(given, np.ndarray) else given:
        flat = array.reshape(-1)
        if kind not in STORED and array.dtype == np.uint8:
            file.write(flat)
            written += _values(flat.size, kind)
            continue
        if flat.size % shape[-1]:
            raise ValueError(f"a part of {flat.size} values came, wanted whole rows of {shape[-1]}")
        for at in range(0, flat.size, _CHUNK):
            content = _encode(flat[at : at + _CHUNK], kind)
            file.write(content.reshape(-1).view(np.uint8))
        written += flat.size
        # An array of equal size and another shape would be written without a word, its axes mixed
        # up.
        if isinstance(given, np.ndarray) and array.shape != shape:
            raise ValueError(f"an array of shape {list(array.shape)} came, wanted {list(shape)}")
    if written != math.prod(shape):
        raise ValueError(f"{written} values came, wanted {math.prod(shape)} for {list(shape)}")


def _encode(values: np.ndarray, kind: str) -> np.ndarray:
    """The stored bytes of some whole blocks. Blocks are quantized one by one, so a flat run of them
    may pass for one row."""
    if kind in STORED:
        with np.errstate(over="ignore"):
            # In the machine's byte order, which must be GGUF's little-endian: that of x86 and
            # ARM.
            stored = np.ascontiguousarray(values).astype(STORED[kind], copy=False)
        # float16 ends at 65504; an infinity that was there before is the source's own.
        if (
            kind == "F16"
            and stored.dtype != values.dtype
            and np.any(np.isinf(stored) & ~np.isinf(values))
        ):
            raise ValueError("it has values beyond 65504; choose BF16 or F32")
        return stored
    values = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(values).all():
        raise ValueError("it has NaN or infinity; choose BF16 or F32")
    if kind in K_TYPES:
        return k_quants.quantize(values, kind)
    # A block of zeros is divided by its scale of zero, which the package mends afterwards.
    with np.errstate(all="ignore"):
        return quantize(values[None], GGMLQuantizationType[kind])


def _nbytes(shape: tuple[int, ...], kind: str) -> int:
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return math.prod(shape) // block * block_bytes


def _values(nbytes: int, kind: str) -> int:
    """How many values the blocks in so many bytes hold. ValueError for a part of a block."""
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    if nbytes % block_bytes:
        raise ValueError(f"{nbytes} bytes of blocks came, wanted a multiple of {block_bytes}")
    return nbytes // block_bytes * block


def _text(text: str, longest: int | None = None) -> bytes:
    try:
        content = text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text[:80]!a} has a lone surrogate, which UTF-8 cannot hold") from None
    if longest is not None and not 0 < len(content) <= longest:
        raise ValueError(f"the name {text[:80]!r} has {len(content)} bytes, wanted 1 to {longest}")
    return struct.pack("<Q", len(content)) + content


def _value(key: str, value: Any) -> bytes:
    """A metadata value as bytes: the number of its type, then its content."""
    if isinstance(value, str):
        return struct.pack("<I", GGUFValueType.STRING) + _text(value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, str) for item in value):
        head = struct.pack("<IIQ", GGUFValueType.ARRAY, GGUFValueType.STRING, len(value))
        return head + b"".join(map(_text, value))
    array = _numbers(value)
    if (
        array is None
        or array.ndim > 1
        or array.dtype not in _KINDS
        or (array.ndim and not array.size)
    ):
        raise ValueError(
            f"metadata {key!r:.80} is {value!r:.60} of type {type(value).__name__}; "
            "wanted a bool, number, string or a list of these, not empty"
        )
    kind, content = _KINDS[array.dtype], array.astype(array.dtype.newbyteorder("<")).tobytes()
    if array.ndim:
        return struct.pack("<IIQ", GGUFValueType.ARRAY, kind, array.size) + content
    return struct.pack("<I", kind) + content


def _numbers(value: Any) -> np.ndarray | None:
    """A number, bool, list or array as a numpy array of the type it is written in; None for other
    values."""
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value)
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    if all(isinstance(item, bool) for item in items):
        kinds: tuple[Any, ...] = (np.bool_,)
    elif all(isinstance(item, int) and not isinstance(item, bool) for item in items):
        # llama.cpp wants its counts as uint32 and its token types as int32.
        kinds = (
            (np.int32, np.int64)
            if isinstance(value, (list, tuple))
            else (np.uint32, np.int32, np.uint64, np.int64)
        )
        kinds = tuple(
            k for k in kinds if all(np.iinfo(k).min <= item <= np.iinfo(k).max for item in items)
        )
    elif all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in items):
        kinds = (np.float32,)
    else:
        return None
    return np.array(value, kinds[0]) if kinds else None
