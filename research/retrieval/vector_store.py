"""Vectors of texts on disk, which a command that was stopped goes on with."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from research.data.documents import digest
from research.files import read_json, write_json
from research.retrieval.vector_file import VectorFile

_KEY_BYTES = 16  # of a text's sha256: a billion texts share one with a chance of 1e-21
_FORMAT = 1


class VectorStore:
    """Rows of float32 by the texts that they are of, in a folder: `keys.bin`, 16 bytes of each
    text's sha256, and `vectors.f32`, [N, D] in the same order.

    Both only grow, a batch at a time, vectors first, so that a row with a key is whole whenever
    the command is stopped. `store.json` says whose vectors they are. ValueError for a folder with
    those of another encoder, or with none.
    """

    def __init__(self, folder: Path, size: int, encoder: str):
        self.folder, self.size = folder, size
        self.vectors, self._keys_file = folder / "vectors.f32", folder / "keys.bin"
        folder.mkdir(parents=True, exist_ok=True)
        told, wanted = folder / "store.json", {"format": _FORMAT, "size": size, "encoder": encoder}
        if told.is_file():
            if (there := read_json(told)) != wanted:
                raise ValueError(
                    f"--index={folder} has vectors of {there.get('encoder')!r}, wanted those of "
                    f"{encoder!r}; give another folder, or the same --embedder"
                )
        elif any(folder.iterdir()):
            raise ValueError(f"--index={folder} has other files; give an empty folder")
        else:
            write_json(told, wanted)
        self._rows = {key: row for row, key in enumerate(self._read())}

    def _read(self) -> list[bytes]:
        for file in (self._keys_file, self.vectors):
            file.touch()
        row = 4 * self.size
        content = self._keys_file.read_bytes()
        count = min(len(content) // _KEY_BYTES, self.vectors.stat().st_size // row)
        # What a kill has cut off is written again.
        for file, width in ((self._keys_file, _KEY_BYTES), (self.vectors, row)):
            if file.stat().st_size != count * width:
                with open(file, "r+b") as opened:
                    opened.truncate(count * width)
        return [content[_KEY_BYTES * n : _KEY_BYTES * (n + 1)] for n in range(count)]

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, texts: Sequence[str]) -> np.ndarray:
        """The row of each text, int64; -1 for a text without a vector."""
        return np.array([self._rows.get(_key(text), -1) for text in texts], np.int64)

    def add(self, texts: Sequence[str], vectors_ND: np.ndarray) -> None:
        """Adds texts that have no row yet, and differ."""
        with open(self.vectors, "ab") as file:
            file.write(np.ascontiguousarray(vectors_ND, np.float32).tobytes())
        with open(self._keys_file, "ab") as file:
            file.write(b"".join(map(_key, texts)))
        first = len(self._rows)
        self._rows |= {_key(text): first + n for n, text in enumerate(texts)}

    def vectors_from(self, first: int = 0) -> VectorFile:
        """The vectors from row `first` on."""
        return VectorFile(self.vectors, self.size, len(self._rows) - first, first)


def _key(text: str) -> bytes:
    return bytes.fromhex(digest(text)[: 2 * _KEY_BYTES])
