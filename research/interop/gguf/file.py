"""Reading GGUF files: the header and the table of tensors are checked against the file's size
first, then tensors are read one at a time, whole or by rows.
"""

import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from research.interop.gguf.header import Header, read_header
from research.interop.storage.tensors import Tensor

# Read and dequantized at a time: the float32 of a quantized tensor is made once, its bytes never
# all at once beside it.
_CHUNK_BYTES = 1 << 20
# The types that are plain numbers, with numpy's type of each; all others are quantized.
STORED = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16), "I8": np.dtype(np.int8), "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32), "I64": np.dtype(np.int64),
}  # fmt: skip


@dataclass(frozen=True)
class Gguf:
    """An open GGUF file. Close it, or use it in a `with`.

        with open_gguf("model.gguf") as file:
            print(file.metadata["general.architecture"], file.read("output_norm.weight").shape)

    `names`: shape and type of each tensor as it is read, in numpy's order ([out, in]). `types`:
    ggml's type of each as stored, such as "Q4_1". `metadata`: numbers, bools, strings, lists of
    strings, and numpy arrays of numbers. `places`: the open file of each tensor and its first byte
    there. `files`: all open files, several where the model is in parts.
    """

    path: Path
    names: Mapping[str, Tensor]
    types: Mapping[str, str]
    metadata: dict[str, Any] = field(repr=False)
    places: Mapping[str, tuple[BinaryIO, int]] = field(repr=False)
    files: tuple[BinaryIO, ...] = field(repr=False)

    def read(self, name: str) -> np.ndarray:
        """The whole tensor: plain numbers in their stored type, quantized types as float32."""
        return self.read_rows(name, 0, self.names[name].shape[0])

    def read_row(self, name: str, row: int) -> np.ndarray:
        """`tensor[row]` along the first axis, read alone."""
        return self.read_rows(name, row, row + 1)[0]

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """`tensor[start:stop]` along the first axis, read alone; 0 <= start <= stop <= its size.

        ValueError for rows outside the tensor, for a type that the `gguf` package cannot
        dequantize, and for a file that was cut short after it was opened.
        """
        shape, kind = self.names[name].shape, self.types[name]
        if not 0 <= start <= stop <= shape[0]:
            raise ValueError(
                f"{self.path}: rows {start} to {stop} of {name!r}, which has {shape[0]}"
            )
        if kind not in STORED and kind not in dequantizable():
            raise ValueError(
                f"{self.path}: {name!r} is of type {kind}; wanted one of "
                f"{', '.join([*STORED, *dequantizable()])}"
            )
        # Quantized types pack `block` values into `block_bytes`, along the last axis.
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        row = math.prod(shape[1:])
        offset = self.places[name][1] + start * row // block * block_bytes
        # Rows of a one-dimensional tensor are single values, less than a block.
        if start * row % block or stop * row % block:
            return self.read(name)[start:stop]
        if kind in STORED:
            out = np.empty((stop - start, *shape[1:]), STORED[kind])
            self._fill(out.reshape(-1).view(np.uint8), offset, name)
            return out
        out = np.empty((stop - start, *shape[1:]), np.float32)
        flat = out.reshape(-1)
        # Whole blocks, since a value cannot be read without its block's scale.
        chunk = _CHUNK_BYTES // block_bytes * block
        for at in range(0, flat.size, chunk):
            part = flat[at : at + chunk]
            blocks = np.empty(part.size // block * block_bytes, np.uint8)
            self._fill(blocks, offset + at // block * block_bytes, name)
            # Blocks are independent, so a chunk may pass for one long row, which is faster than
            # many short ones.
            with np.errstate(all="ignore"):  # a scale of infinity is the file's own
                part[:] = dequantize(blocks[None], GGMLQuantizationType[kind])[0]
        return out

    def read_stored(self, name: str, start: int, stop: int) -> np.ndarray:
        """`tensor[start:stop]` of a quantized type with three axes or two, as it is stored: uint8
        [rows, ..., blocks, bytes of a block]. 0 <= start <= stop <= the rows."""
        shape = self.names[name].shape
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[self.types[name]]]
        stored = (stop - start, *shape[1:-1], shape[-1] // block, block_bytes)
        out = np.empty(stored, np.uint8)
        offset = self.places[name][1] + start * math.prod(stored[1:])
        self._fill(out.reshape(-1), offset, name)
        return out

    def close(self) -> None:
        """Closes the files; tensors that were read stay."""
        for file in self.files:
            file.close()

    def __enter__(self) -> "Gguf":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _fill(self, out: np.ndarray, offset: int, name: str) -> None:
        """Reads `out.nbytes` bytes at `offset` into `out`.

        The file is not mapped for this: mapped pages count as this process's memory, which would be
        the whole checkpoint in the end.
        """
        done, file = 0, self.places[name][0]
        while done < out.nbytes:
            # One call returns at most 2 GiB on Linux, and may return less for any reason.
            got = os.preadv(file.fileno(), [out[done:]], offset + done)
            if not got:
                raise ValueError(
                    f"{file.name} ends within {name!r}; it was cut short after it was opened"
                )
            done += got


def open_gguf(path: str | os.PathLike) -> Gguf:
    """Opens a file and reads its metadata and table of tensors; see `Gguf`.

    ValueError, one line, for a file that cannot be opened, is cut short, or claims more than it
    has: no count or offset in it is believed unchecked.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is missing or no file; wanted a GGUF file")
    try:
        file = open(path, "rb")
    except OSError as error:
        raise ValueError(
            f"{path} cannot be opened ({error.strerror}); wanted a GGUF file"
        ) from None
    try:
        # Mapped for the header alone, whose length is known only when it has been read.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = read_header(data)
            names, types, offsets = _tensors(header, len(data))
    except (ValueError, OSError) as error:  # an empty file cannot be mapped
        file.close()
        raise ValueError(
            f"{path} is no whole GGUF file: {error}; fetch or convert it again"
        ) from None
    # An interrupt between opening and returning would leave the file open.
    except BaseException:
        file.close()
        raise
    places = {name: (file, offset) for name, offset in offsets.items()}
    return Gguf(path, names, types, header.metadata, places, (file,))


@cache
def dequantizable() -> tuple[str, ...]:
    """Names of the quantized types that the installed `gguf` package can turn into float32.

    The package has no list of them, so each type is tried on a block of zeros.
    """
    names = []
    for kind, (_, block_bytes) in GGML_QUANT_SIZES.items():
        try:
            dequantize(np.zeros((1, block_bytes), np.uint8), kind)
        except NotImplementedError:
            continue
        names.append(kind.name)
    return tuple(name for name in names if name not in STORED)


def _tensors(header: Header, size: int) -> tuple[dict[str, Tensor], dict[str, str], dict[str, int]]:
    """(tensor, type, byte offset) by name, in a file of `size` bytes. ValueError for data beyond
    the end, not aligned, or claimed by two tensors."""
    # Offsets in the table count from the end of the header, rounded up to the alignment.
    alignment = header.alignment
    start = header.size + -header.size % alignment
    names, types, offsets, ranges = {}, {}, {}, []
    for row in header.table:
        name = f"tensor {row.name!r:.80}"
        if row.name in names:
            raise ValueError(f"{name} is there twice")
        if row.type not in iter(GGMLQuantizationType):
            known = ", ".join(kind.name for kind in GGMLQuantizationType)
            raise ValueError(f"{name} is of type {row.type}, wanted one of {known}")
        kind = GGMLQuantizationType(row.type)
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if 0 in row.shape or row.shape[-1] % block:
            raise ValueError(
                f"{name} is {list(row.shape)} of {kind.name}, wanted rows of whole blocks of "
                f"{block}"
            )
        if row.offset % alignment:
            raise ValueError(f"{name} begins at {row.offset}, wanted a multiple of {alignment}")
        begin = start + row.offset
        # Python's integers do not overflow, so a hostile shape only gives an end beyond the file.
        end = begin + math.prod(row.shape) // block * block_bytes
        if end > size:
            raise ValueError(
                f"{name}, {list(row.shape)} of {kind.name}, ends at byte {end} of {size}"
            )
        names[row.name] = Tensor(
            row.shape, STORED[kind.name].name if kind.name in STORED else "float32"
        )
        types[row.name], offsets[row.name] = kind.name, begin
        ranges.append((begin, end, row.name))
    # Sorted by begin, any two ranges overlap only if two neighbours do.
    ranges.sort()
    for (_, end, first), (begin, _, second) in zip(ranges, ranges[1:]):
        if begin < end:
            raise ValueError(f"tensors {first!r:.80} and {second!r:.80} overlap")
    return names, types, offsets
