"""Vectors in a file, read where they are asked for."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class VectorFile:
    """Rows float32 [N, D] of a file, `count` of `size` numbers from row `first` on. The file is
    never mapped: pages of a mapped file count as the memory of who has looked at them."""

    file: Path
    size: int
    count: int
    first: int = 0

    def __len__(self) -> int:
        return self.count

    def block(self, start: int, stop: int) -> np.ndarray:
        """The rows from `start` up to `stop`, or to the last."""
        rows, begin = min(stop, self.count) - start, self.first + start
        numbers = np.fromfile(self.file, np.float32, rows * self.size, offset=4 * self.size * begin)
        return numbers.reshape(rows, self.size)

    def take(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Some rows, in the given order."""
        width = 4 * self.size
        with open(self.file, "rb") as opened:
            parts = [
                os.pread(opened.fileno(), width, width * (self.first + int(row))) for row in rows
            ]
        return np.frombuffer(b"".join(parts), np.float32).reshape(len(parts), self.size)
