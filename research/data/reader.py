"""`Reader`: the protocol of file formats, with what their implementations share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from research.data.documents import UnreadableRecord

BOM = b"\xef\xbb\xbf"  # the mark with which Windows programs begin a UTF-8 file


class Reader(Protocol):
    """The records of one file.

    `row(i, wanted)` returns record i as a dict with at least those columns in `wanted` that the
    record has, or raises UnreadableRecord. `identity(i)` is a name for it, unique in the folder.
    Opening a file that is not of its format is a ValueError that names the file and, where there
    are lines, the line.
    """

    path: Path
    name: str
    columns: tuple[str, ...]

    def __len__(self) -> int: ...

    def row(self, row: int, wanted: Sequence[str]) -> dict[str, Any]:
        """Record number `row`, counted from 0."""

    def identity(self, row: int) -> str:
        """A name for record number `row`."""


def read_piece(path: Path, row: int, start: int, stop: int) -> str:
    """The text between two bytes of a file, record number `row` of it. UnreadableRecord if it
    cannot be read or is not UTF-8."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(stop - start).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableRecord(str(path), row, error) from None
