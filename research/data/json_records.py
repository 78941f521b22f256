"""JSON records: one on each line of a file, or a list of them."""

import functools
import json
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.data.documents import UnreadableRecord
from research.data.reader import BOM, Reader, read_piece
from research.data.squad import Squad, is_squad

_BLOCK_BYTES = 64 * 1024 * 1024
_LOOK_AT = 100  # records whose fields are looked at, so that a bad first one does not hide them


def open_json(path: Path, name: str) -> Reader:
    """A list of records, or what many call .json: a record on each line; or a file of SQuAD's."""
    with open(path, "rb") as file:
        head = file.read(4096)
    if is_squad(head):
        return Squad(path, name)
    begins = head.removeprefix(BOM).lstrip()[:1]
    return JsonLines(path, name) if begins == b"{" else JsonList(path, name)


class JsonLines:
    """A file with a JSON object on each line. Blank lines do not count."""

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        self._starts, self._stops = _lines(path)

    def __len__(self) -> int:
        return len(self._starts)

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """The fields of the first readable record. ValueError, with what is wrong with the first
        record, if none of the first hundred can be read."""
        # One record speaks for all. Optional fields that it lacks are still read where they are.
        first = None
        for row in range(min(len(self), _LOOK_AT)):
            try:
                return tuple(self.row(row))
            except UnreadableRecord as error:
                first = first or error
        raise ValueError(f"{first}; no record before {min(len(self), _LOOK_AT)} can be read")

    def identity(self, row: int) -> str:
        """FILE:NUMBER."""
        return f"{self.name}:{row}"

    def row(self, row: int, wanted: Sequence[str] = ()) -> dict[str, Any]:
        """All fields of the object on a line."""
        # The file is opened for each record: a folder may have more files than a process may open.
        line = read_piece(self.path, row, int(self._starts[row]), int(self._stops[row]))
        try:
            return _record(json.loads(line, object_pairs_hook=_fields))
        # Deep nesting exhausts the parser's stack before it is a syntax error.
        except (ValueError, RecursionError) as error:
            raise UnreadableRecord(str(self.path), row, error) from None


class JsonList:
    """A file that holds one JSON list of objects, which is kept in memory."""

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        try:
            self._records = json.loads(
                path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_fields
            )
        except (ValueError, RecursionError) as error:  # json's errors name line and column
            raise ValueError(f"{path} cannot be read as JSON: {error}") from None
        if not isinstance(self._records, list):
            raise ValueError(
                f"{path} holds a JSON {type(self._records).__name__}, wanted a list of records or "
                f"a record on each line"
            )

    def __len__(self) -> int:
        return len(self._records)

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """The fields of the first object."""
        objects = (record for record in self._records[:_LOOK_AT] if isinstance(record, dict))
        return tuple(next(objects, ()))

    def identity(self, row: int) -> str:
        """FILE:NUMBER."""
        return f"{self.name}:{row}"

    def row(self, row: int, wanted: Sequence[str] = ()) -> dict[str, Any]:
        """All fields of an object of the list."""
        try:
            return _record(self._records[row])
        except ValueError as error:
            raise UnreadableRecord(str(self.path), row, error) from None


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. ValueError for a field that it has twice, of which json would lose the first."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the field {twice!r} twice; give each its own name")
    return fields


def _record(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}, wanted an object")
    return value


def _lines(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(first bytes, end bytes) of all lines that are not blank, without their line feeds."""
    # Only the places of line ends are kept: 16 bytes a record, whatever its length.
    ends, position = [], 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + position)
            position += len(block)
    stops = np.append(np.concatenate([np.zeros(0, np.int64), *ends]), position)
    starts = np.append(0, stops[:-1] + 1)
    if not position:
        return starts[:0], stops[:0]
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[: len(BOM)] == BOM:
            starts[0] = len(BOM)
        full = stops - starts > 0
        # Lines of white space, such as the "\r" of a blank line of Windows, are blank too. A record
        # begins with a brace, so few lines have to be looked at whole.
        first = np.frombuffer(data, np.uint8)[np.where(full, starts, 0)]
        for line in np.flatnonzero(full & np.isin(first, list(b" \t\r\v\f"))):
            full[line] = bool(data[starts[line] : stops[line]].strip())
    return starts[full], stops[full]
