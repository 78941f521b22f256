"""Local files as documents: a .txt, .jsonl or .parquet file, or a folder of them."""

import functools
import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from research.data.documents import UnreadableRecord, digest
from research.data.layouts import LAYOUTS, choose_columns, read_record
from research.downloads.cache import remembered

# Longest document cut from a text file: some 64k tokens, more than the windows of training.
PIECE_BYTES = 256 * 1024
# Least number of pieces, so that `documents.heldout_mask` finds some even in one small file.
PIECES_WANTED = 20
_BLOCK_BYTES = 64 * 1024 * 1024


class Reader(Protocol):
    """The records of one file.

    `row(i, wanted)` returns record i as a dict with at least those columns in `wanted` that the
    record has, or raises UnreadableRecord. `identity(i)` is a name for it, unique in the folder.
    """

    path: Path
    name: str
    columns: tuple[str, ...]

    def __len__(self) -> int: ...

    def row(self, row: int, wanted: Sequence[str]) -> dict[str, Any]: ...

    def identity(self, row: int) -> str: ...


class FileDocuments:
    """The records of a file, or of all files below a folder in the order of their paths.

    Text files are cut at line ends into pieces, each of which is a document. ValueError for a path
    that is missing, cannot be read or holds no records.
    """

    def __init__(self, path: Path, query: str, cache_dir: Path, wanted: str = "texts"):
        try:
            self._readers = _open_readers(path)
        except OSError as error:
            raise ValueError(f"data {str(path)!r} cannot be read: {error}") from None
        self._ends = np.cumsum([len(reader) for reader in self._readers])
        self._fields = choose_columns(query, _columns(self._readers), f"{path}?{query}", wanted)
        self._layout, self.fields = wanted, LAYOUTS[wanted].fields
        # The fingerprint covers names, contents, the columns read and how texts are cut.
        files = [(str(reader.path), reader.name) for reader in self._readers]
        counts = [len(reader) for reader in self._readers]
        self.fingerprint = digest(
            content_digest(files, cache_dir), json.dumps([self._fields, counts])
        )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, str]:
        which = int(np.searchsorted(self._ends, index, side="right"))
        reader = self._readers[which]
        row = index - (int(self._ends[which - 1]) if which else 0)
        columns = reader.row(row, list(self._fields.values()))
        document = read_record(columns, self._fields, self._layout, str(reader.path), row)
        return document | {"path": reader.identity(row)}

    def identities(self) -> Iterator[str]:
        """A name for each document, in order: the path of its file in the folder, and its place in
        that file if the file has several."""
        for reader in self._readers:
            yield from map(reader.identity, range(len(reader)))


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
        return (
            self.name if len(self) == 1 else f"{self.name}[{self._cuts[row]}:{self._cuts[row + 1]}]"
        )

    def row(self, row: int, wanted: Sequence[str] = columns) -> dict[str, Any]:
        return {"text": _read(self.path, row, self._cuts[row], self._cuts[row + 1])}


class JsonLines:
    """A file with a JSON object on each line. Blank lines do not count."""

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        self._starts, self._stops = _lines(path)

    def __len__(self) -> int:
        return len(self._starts)

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        for row in range(min(len(self), 100)):  # a bad first line must not hide the fields
            try:
                return tuple(self.row(row))
            except UnreadableRecord:
                continue
        return ()

    def identity(self, row: int) -> str:
        return f"{self.name}:{row}"

    def row(self, row: int, wanted: Sequence[str] = ()) -> dict[str, Any]:
        line = _read(self.path, row, int(self._starts[row]), int(self._stops[row]))
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UnreadableRecord(str(self.path), row, error) from None
        if not isinstance(value, dict):
            raise UnreadableRecord(
                str(self.path), row, f"a JSON {type(value).__name__}, wanted an object"
            )
        return value


def content_digest(files: list[tuple[str, str]], cache_dir: Path) -> str:
    """A sha256 of the names and contents of `files`, (path, name) pairs. It is kept in the cache
    until the size or time stamp of a file changes."""
    stats = [(path, name, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path, name in files]

    def read_all() -> str:
        parts = []
        for path, name in files:
            with open(path, "rb") as file:
                parts += [name, hashlib.file_digest(file, "sha256").hexdigest()]
        return digest(*parts)

    return remembered(cache_dir / "digests" / f"{digest(json.dumps(stats))}.json", read_all)


def _open_readers(path: Path) -> list["Reader"]:
    """A reader for each file with at least one record. ValueError if there is none, or one cannot
    be opened."""
    if not path.exists():
        raise ValueError(
            f"data {str(path)!r} does not exist; set config.data.source to a file, a folder or a "
            f"data set"
        )
    found = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    found = [p for p in found if p.suffix in (".txt", ".jsonl", ".parquet")]
    if not found:
        raise ValueError(
            f"data {str(path)!r} holds no .txt, .jsonl or .parquet file; these are the formats read"
        )
    text_bytes = sum(p.stat().st_size for p in found if p.suffix == ".txt")
    limit = min(PIECE_BYTES, max(256, text_bytes // PIECES_WANTED))
    readers: list[Reader] = []
    for file in found:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        if file.suffix == ".txt":
            readers.append(Text(file, name, limit))
        elif file.suffix == ".jsonl":
            readers.append(JsonLines(file, name))
        else:
            from research.data.parquet import Parquet  # pyarrow takes a while to import

            readers.append(Parquet(file, name))
    readers = [reader for reader in readers if len(reader)]
    if not readers:
        raise ValueError(f"data {str(path)!r} is empty: no text in {len(found)} file(s)")
    return readers


def _columns(readers: list["Reader"]) -> tuple[str, ...]:
    """The columns that every file has."""
    common = set(readers[0].columns).intersection(*(reader.columns for reader in readers))
    return tuple(sorted(common))


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


def _lines(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(first bytes, end bytes) of all lines that are not empty, without their line ends."""
    ends, position = [], 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + position)
            position += len(block)
    stops = np.append(np.concatenate([np.zeros(0, np.int64), *ends]), position)
    starts = np.append(0, stops[:-1] + 1)
    full = stops - starts > 0
    return starts[full], stops[full]


def _read(path: Path, row: int, start: int, stop: int) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(stop - start).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableRecord(str(path), row, error) from None
