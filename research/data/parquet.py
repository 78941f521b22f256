"""Parquet files as records."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from research.data.documents import UnreadableRecord


class Parquet:
    """The rows of a parquet file.

    The row group last read is kept, so that reading in order decodes each group once. A reader must
    always be asked for the same columns.
    """

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
                self.columns = tuple(file.schema_arrow.names)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(
                f"{path} cannot be read as parquet: {' '.join(str(error).split())}"
            ) from None
        # Where each row group ends: a group is the least that can be read of a file.
        self._ends = np.cumsum([0, *groups])
        self._group: tuple[int, list[dict[str, Any]]] = (-1, [])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def identity(self, row: int) -> str:
        """FILE:NUMBER."""
        return f"{self.name}:{row}"

    def row(self, row: int, wanted: Sequence[str]) -> dict[str, Any]:
        """The wanted columns of a row as Python values."""
        group = int(np.searchsorted(self._ends, row, side="right")) - 1
        if self._group[0] != group:
            try:
                with pyarrow.parquet.ParquetFile(self.path) as file:
                    rows = file.read_row_group(group, columns=list(wanted)).to_pylist()
                self._group = (group, list(map(_without_nulls, rows)))
            except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
                raise UnreadableRecord(str(self.path), row, error) from None
        return self._group[1][row - int(self._ends[group])]


def _without_nulls(value: Any) -> Any:
    """Dicts without the fields that are null: a column of structs has one set of fields for all
    rows, and gives null for those that a row did not have, such as another tool's arguments."""
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value
