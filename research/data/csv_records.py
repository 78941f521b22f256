"""Tables of comma or tab separated values."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.data.documents import UnreadableRecord
from research.data.reader import BOM, read_piece


class Table:
    """A .csv or .tsv file whose first line names the columns; all values are text.

    Cells may be quoted and hold line ends (RFC 4180). The delimiter is the comma, tab or semicolon
    that the header has most of. Only the bounds of the records are kept
    in memory.
    """

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        with open(path, "rb") as file:
            header = file.readline().removeprefix(BOM).decode("utf-8", "replace")
        self._delimiter = _delimiter(header)
        bounds = list(self._scan())
        self.columns: tuple[str, ...] = ()
        if bounds:
            start, stop, _ = bounds[0]
            self.columns = tuple(self._cells(read_piece(path, 0, start, stop)))
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"{path}, line 1: two columns have one name; give each its own")
        # (first byte, end byte, number of the first line) of each record.
        self._bounds = np.array(bounds[1:], np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._bounds)

    def identity(self, row: int) -> str:
        """FILE:NUMBER."""
        return f"{self.name}:{row}"

    def row(self, row: int, wanted: Sequence[str] = ()) -> dict[str, Any]:
        """{column: text} of a record."""
        start, stop, line = self._bounds[row].tolist()
        cells = self._cells(read_piece(self.path, row, start, stop))
        # A cell too many is most often a comma in a text without quotes: guessing would move the
        # texts of a record into the wrong columns.
        if len(cells) != len(self.columns):
            reason = f"line {line} has {len(cells)} cells, the header {len(self.columns)}"
            raise UnreadableRecord(str(self.path), row, reason)
        return dict(zip(self.columns, cells))

    def _cells(self, text: str) -> list[str]:
        # newline="": line ends inside quotes stay as they are.
        return next(csv.reader(io.StringIO(text, newline=""), delimiter=self._delimiter), [])

    def _scan(self) -> Iterator[tuple[int, int, int]]:
        """The bounds of each record, header included; blank lines are none."""
        # The library's limit of 128 kB is less than a long text. It can only be set for all.
        csv.field_size_limit(1 << 30)
        with open(self.path, "rb") as file:
            position = file.seek(len(BOM) if file.read(len(BOM)) == BOM else 0)

            def _lines() -> Iterator[str]:
                nonlocal position
                for line in file:
                    position += len(line)
                    # A character for each byte, and quotes and delimiters are ASCII: bounds are
                    # found in any encoding, and a record that is not UTF-8 is unreadable alone.
                    yield line.decode("latin-1")

            records, start, line = csv.reader(_lines(), delimiter=self._delimiter), position, 1
            try:
                for cells in records:
                    if cells:
                        yield start, position, line
                    # The library reads no further than the record: the next one begins here.
                    start, line = position, records.line_num + 1
            except csv.Error as error:
                raise ValueError(f"{self.path}, line {records.line_num}: {error}") from None


def _delimiter(header: str) -> str:
    """Commas or tabs, unless the header has only semicolons: some spreadsheets write these."""
    counts = {mark: header.count(mark) for mark in (",", "\t", ";")}
    return max(counts, key=lambda mark: counts[mark])
