"""Text files as records: pieces of bounded size."""

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.data.reader import read_piece


class Text:
    """A text file in pieces of at most `limit` bytes. It is cut after line ends, and a line longer
    than that between characters."""

    columns = ("text",)

    def __init__(self, path: Path, name: str, limit: int):
        self.path, self.name = path, name
        self._cuts = _cut(path, limit)

    def __len__(self) -> int:
        return len(self._cuts) - 1

    def identity(self, row: int) -> str:
        """The file's name, and the bytes of the piece if there are several."""
        return (
            self.name if len(self) == 1 else f"{self.name}[{self._cuts[row]}:{self._cuts[row + 1]}]"
        )

    def row(self, row: int, wanted: Sequence[str] = columns) -> dict[str, Any]:
        """{"text": the piece}."""
        text = read_piece(self.path, row, self._cuts[row], self._cuts[row + 1])
        # The mark stays in the bounds of the first piece, which are its name.
        return {"text": text if row else text.removeprefix("\ufeff")}


def _cut(path: Path, limit: int) -> list[int]:
    size = path.stat().st_size
    if size <= limit:
        return [0, size] if size else [0]
    cuts = [0]
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while size - cuts[-1] > limit:
            cut = data.rfind(b"\n", cuts[-1], cuts[-1] + limit) + 1
            if not cut:
                cut = cuts[-1] + limit
                # Not inside a UTF-8 character, whose later bytes are 10xxxxxx, at most three.
                while data[cut] & 0xC0 == 0x80 and cut > cuts[-1] + limit - 3:
                    cut -= 1
            cuts.append(cut)
    return [*cuts, size]
