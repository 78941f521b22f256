"""The header of a GGUF file: metadata and the table of tensors, parsed from untrusted bytes.

The layout is that of ggml's docs/gguf.md, versions 2 and 3, little-endian:

    magic "GGUF", version, number of tensors, number of keys
    of each key:     name, type, value
    of each tensor:  name, number of dimensions, dimensions, type, offset of the data

Every count is compared with the bytes that are left before anything is allocated for it.
"""

import mmap
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gguf.constants import GGUFValueType

MAGIC, ALIGNMENT_KEY, ALIGNMENT = b"GGUF", "general.alignment", 32
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_NAME_BYTES = 65535  # of a key; the format's own bound
# Bounds on keys, on tensors, and on strings in all arrays together. The counts of a large damaged
# file could keep a loop busy for minutes though each fits the file; published files have under 100
# keys, 2000 tensors and 700 thousand strings.
_MAX_ENTRIES, _MAX_STRINGS = 1 << 16, 1 << 21
# Little-endian type codes in a spelling that `struct` and numpy share.
SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}


@dataclass(frozen=True)
class Row:
    """One line of the table of tensors: `shape` in numpy's order, `type` as ggml's number, `offset`
    in bytes from the start of the data."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class Header:
    """A parsed header; `size` is its length in bytes, before the padding that follows."""

    metadata: dict[str, Any] = field(repr=False)
    table: list[Row] = field(repr=False)
    size: int

    @property
    def alignment(self) -> int:
        """Bytes to a multiple of which every tensor's data is aligned."""
        return check_alignment(self.metadata.get(ALIGNMENT_KEY, ALIGNMENT))


def read_header(data: bytes | mmap.mmap) -> Header:
    """The header at the start of a file's bytes. ValueError, with the byte where it is wrong."""
    cursor = _Cursor(data)
    if (magic := cursor.take(4)) != MAGIC:
        raise ValueError(f"it begins with {magic!r}, wanted {MAGIC!r}")
    version = cursor.number("<I")
    # Version 3 of a big-endian file reads as 0x03000000.
    if version & 0xFFFF == 0:
        raise ValueError("it is big-endian; wanted a little-endian one")
    if version not in (2, 3):
        raise ValueError(f"it is of version {version}, wanted 2 or 3")
    # Version 1 had counts of 32 bits and is refused above.
    tensors, keys = cursor.number("<Q"), cursor.number("<Q")
    # The shortest key is its length (8), one character, its type (4) and one byte; the shortest
    # tensor has 8 + 1 + 4 + 8 + 4 + 8 bytes.
    for count, what, least_bytes in ((keys, "keys", 14), (tensors, "tensors", 33)):
        if count > min(_MAX_ENTRIES, len(data) // least_bytes):
            raise ValueError(f"it claims {count} {what} in {len(data)} bytes")
    metadata = {}
    for _ in range(keys):
        key = cursor.name("key")
        if key in metadata:
            raise ValueError(f"key {key!r:.80} is there twice")
        metadata[key] = cursor.value(key)
    return Header(metadata, [cursor.row() for _ in range(tensors)], cursor.at)


def check_name(name: str) -> None:
    """Refuses, with a ValueError, a tensor name that is unsafe in a path or in a line of a report:
    empty, with control characters, a path separator or ".."."""
    if not name or not name.isprintable() or "/" in name or "\\" in name or ".." in name:
        raise ValueError(
            f"tensor name {name[:80]!a} is empty or has control characters, a path separator or "
            "'..'"
        )


def check_alignment(alignment: Any) -> int:
    """The alignment as an int. ValueError for anything but a power of two below 2^32."""
    if (
        isinstance(alignment, bool)
        or not isinstance(alignment, (int, np.integer))
        or not 0 < alignment < 1 << 32
    ):
        raise ValueError(f"{ALIGNMENT_KEY} is {str(alignment)[:40]!r}, wanted a power of two")
    if alignment & (alignment - 1):
        raise ValueError(f"{ALIGNMENT_KEY} is {alignment}, wanted a power of two")
    return int(alignment)


class _Cursor:
    """A position in the header that advances as values are taken, and never past the end."""

    def __init__(self, data: bytes | mmap.mmap):
        self.data, self.at, self.strings = data, 0, 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise ValueError(f"it claims {count} bytes at byte {self.at} of {len(self.data)}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, kind: str) -> Any:
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def text(self) -> str:
        content = self.take(self.number("<Q"))
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise ValueError(f"the string that ends at byte {self.at} is not UTF-8") from None

    def name(self, what: str) -> str:
        """The next string, a printable name of at most `MAX_NAME_BYTES`; `what` is for errors."""
        start = self.at
        if (count := self.number("<Q")) > MAX_NAME_BYTES:
            raise ValueError(
                f"it claims a {what} of {count} bytes at byte {start}, wanted at most "
                f"{MAX_NAME_BYTES}"
            )
        # Back to the length, which `text` reads again together with its content.
        self.at = start
        name = self.text()
        if not name or not name.isprintable():
            raise ValueError(f"{what} {name[:80]!a} is empty or has control characters")
        return name

    def value(self, key: str) -> Any:
        """The type and value of a key: number, bool, string, or an array of one of these."""
        kind = self.number("<I")
        if kind == GGUFValueType.STRING:
            return self.text()

        if kind == GGUFValueType.BOOL:
            return self.take(1) != b"\0"
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind != GGUFValueType.ARRAY:
            raise ValueError(f"key {key!r:.80} is of type {kind}, wanted 0 to {max(GGUFValueType)}")
        # Arrays of arrays are allowed by the format; no key of llama.cpp has one.
        kind, count = self.number("<I"), self.number("<Q")
        if kind == GGUFValueType.STRING:
            return self.texts(key, count)
        if kind not in SCALARS:
            raise ValueError(
                f"key {key!r:.80} is an array of type {kind}, wanted numbers, bools or strings"
            )
        content = self.take(count * struct.calcsize(SCALARS[kind]))
        # A numpy bool over any other byte than 0 and 1 is neither equal to True nor to False.
        if kind == GGUFValueType.BOOL:
            return np.frombuffer(content, np.uint8) != 0
        return np.frombuffer(content, SCALARS[kind])

    def texts(self, key: str, count: int) -> list[str]:
        """The next `count` strings. ValueError if the file has no room for so many."""
        self.strings += count
        if count > (len(self.data) - self.at) // 8 or self.strings > _MAX_STRINGS:
            raise ValueError(
                f"key {key!r:.80} claims {count} strings at byte {self.at} of {len(self.data)}"
            )
        # The same as `text` in a loop, in half the time: a vocabulary has hundreds of thousands of
        # strings. Whatever is wrong is left to `text`, which says so.
        strings, length, last = [], struct.Struct("<Q").unpack_from, len(self.data)
        for _ in range(count):
            start = self.at + 8
            end = start + length(self.data, self.at)[0] if start <= last else start
            if end > last:
                self.text()
            try:
                strings.append(self.data[start:end].decode())
            except UnicodeDecodeError:
                self.text()
            self.at = end
        return strings

    def row(self) -> Row:
        """The next line of the table of tensors, checked."""
        name = self.name("tensor name")
        check_name(name)
        dims = self.number("<I")
        if not 1 <= dims <= MAX_DIMS:
            raise ValueError(f"tensor {name!r:.80} has {dims} dimensions, wanted 1 to {MAX_DIMS}")
        # ggml lists the fastest axis first.
        shape = struct.unpack(f"<{dims}Q", self.take(8 * dims))[::-1]
        return Row(name, shape, self.number("<I"), self.number("<Q"))
