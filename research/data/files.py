"""Local files as documents: a file in a format of `research.data.formats`, or a folder of them."""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research.data.content import content_digest
from research.data.documents import digest
from research.data.formats import RECORDS, TEXTS, files_with_media, reader_of
from research.data.layouts import LAYOUTS, OtherColumns, choose_columns, read_record
from research.data.media.kinds import Medium, kind_of
from research.data.media_records import media_of
from research.data.reader import Reader
from research.data.text_file import Text

# Longest document cut from a text file: some 64k tokens, more than the windows of training.
PIECE_BYTES = 256 * 1024
# Least number of pieces, so that `documents.heldout_mask` finds some even in one small file.
PIECES_WANTED = 20
# The only formats that rules 1 read.
EARLIER_FORMATS = frozenset((".txt", ".jsonl", ".parquet"))
# Commands that unpack a file and keep the original, by its suffix.
_UNPACK = {
    ".gz": "gunzip -k",
    ".bz2": "bunzip2 -k",
    ".xz": "unxz -k",
    ".zst": "unzstd",
    ".zip": "unzip",
    ".tar": "tar -xf",
}


class FileDocuments:
    """The records of a file, or of all files below a folder in the order of their paths.

    Text files are cut at line ends into pieces, each a document of its own. Files of a folder may
    have different columns; columns are chosen for each file alone. If a folder holds records, texts
    other than .txt are skipped, such as a README; so are files of unknown formats and without the
    wanted columns. One log line gives their number. ValueError for a path that is missing, cannot
    be read or holds no records, and for a .jsonl or .parquet file without the wanted columns.

    `rules` is the version of these rules. 2 is the present one. A run that began under version 1
    continues with it: .txt, .jsonl and .parquet files only, the columns that all files have in
    common, and empty texts kept as documents.
    """

    def __init__(
        self,
        path: Path,
        query: str,
        cache_dir: Path,
        wanted: str = "texts",
        rules: int = 2,
    ):
        try:
            self._readers, self._fields = _open_readers(path, query, wanted, rules)
        except OSError as error:
            raise ValueError(f"data {str(path)!r} cannot be read: {error}") from None
        self._ends = np.cumsum([len(reader) for reader in self._readers])
        self._layout, self.fields, self.rules = wanted, LAYOUTS[wanted].fields, rules
        # The fingerprint covers names, contents, the columns read and how texts are cut.
        # Names are those within the folder: a copy elsewhere is the same data.
        files = [(str(reader.path), reader.name) for reader in self._readers]
        files += [
            (str(file), file.name) for r in self._readers for file in getattr(r, "beside", ())
        ]
        counts = [len(reader) for reader in self._readers]
        content = content_digest(files, cache_dir)
        chosen: Any = self._fields if rules > 1 else self._common_fields(query)
        own = (f"rules {rules}",) if rules > 1 else ()
        self.fingerprint = digest(*own, content, json.dumps([chosen, counts]))

    def _common_fields(self, query: str) -> Mapping[str, str]:
        """The columns that rules 1 read: chosen among those that all files have."""
        columns = set.intersection(*(set(reader.columns) for reader in self._readers))
        optional = LAYOUTS[self._layout].optional
        try:
            chosen = choose_columns(query, tuple(sorted(columns)), "", self._layout)
        except OtherColumns:
            return {}
        for reader, fields in zip(self._readers, self._fields):
            # Parquet files lost their other columns then; of lines all fields were read.
            if set(fields) - set(chosen) and reader.path.suffix == ".parquet":
                return {}
        return {name: chosen[name] for name in chosen if name not in optional}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _located(self, index: int) -> tuple[Reader, dict[str, str], int]:
        """(the reader of document `index`, its columns, the number of the record there)."""
        which = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[which - 1]) if which else 0)
        return self._readers[which], self._fields[which], row

    def media(self, index: int) -> list[Medium]:
        """The media of document `index` in the order of their places, nothing of them decoded."""
        reader, fields, row = self._located(index)
        return media_of(reader.row(row, list(fields.values())), fields, reader.path.parent)

    def __getitem__(self, index: int) -> dict[str, str]:
        reader, fields, row = self._located(index)
        record = reader.row(row, list(fields.values()))
        if self.rules == 1:  # optional columns came later
            optional = LAYOUTS[self._layout].optional
            record = {name: value for name, value in record.items() if name not in optional}
        document = read_record(record, fields, self._layout, str(reader.path), row)
        return document | {"path": reader.identity(row)}

    def identities(self) -> Iterator[str]:
        """A name for each document, in order: the path of its file in the folder, and its place in
        that file if the file has several."""
        for reader in self._readers:
            yield from map(reader.identity, range(len(reader)))


def _open_readers(
    path: Path, query: str, wanted: str, rules: int
) -> tuple[list[Reader], list[dict[str, str]]]:
    """(a reader for each file with records, its columns by their names in the layout)."""
    if not path.exists():
        raise ValueError(
            f"data {str(path)!r} does not exist; set config.data.source to a file, a folder or a "
            f"data set"
        )
    files = [path]
    if path.is_dir():
        files = [
            file
            for file in sorted(path.rglob("*"))
            if file.is_file()
            # A folder of code should not include .git or .venv. The earlier formats were always
            # read from hidden folders too, and older runs rely on it.
            and (file.suffix in EARLIER_FORMATS or not _hidden(file.relative_to(path)))
        ]
    # By suffix alone: contents could only be told apart by reading all of them.
    media = LAYOUTS[wanted].media
    known = files_with_media(files) if media else [file for file in files if _known(file, rules)]
    if not known:
        raise ValueError(
            f"data {str(path)!r} holds no .txt, .jsonl or .parquet file; read are records in "
            f"{', '.join(RECORDS)}, and texts such as .txt, .md and .py{_how_to_unpack(files)}"
        )
    opened, passed = _fitting(known, path, query, wanted)
    others = set(files) - set(known)
    if media:  # what records name, and captions, are a part of them
        others = {file for file in others if not (kind_of(file.suffix) or file.suffix == ".txt")}
    passed |= {file: f"format {file.suffix or 'unknown'}" for file in others}
    if passed and path.is_dir() and rules > 1:
        _tell_passed(path, passed, len(files))
    return [reader for reader, _ in opened], [fields for _, fields in opened]


def _how_to_unpack(files: list[Path]) -> str:
    """The end of an error line where there are compressed files: records are read by their places
    in a file, which a compressed one does not have."""
    packed = {
        file.suffix.lower(): file for file in reversed(files) if file.suffix.lower() in _UNPACK
    }
    commands = [f"{_UNPACK[suffix]} {file}" for suffix, file in sorted(packed.items())]
    return f"; unpack what is compressed: {', '.join(commands)}" if commands else ""


def _opened(
    files: list[Path], path: Path, passed: dict[Path, str], failures: list[ValueError]
) -> dict[Path, Reader]:
    """A reader for each file with records. Why others are passed over goes into `passed`."""
    text_bytes = sum(file.stat().st_size for file in files if not _holds_records(file))
    limit = min(PIECE_BYTES, max(256, text_bytes // PIECES_WANTED))
    readers: dict[Path, Reader] = {}
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        try:
            opens = reader_of(file.suffix)
            if opens is None:
                readers[file] = Text(file, name, limit)
            elif file.stat().st_size:
                readers[file] = opens(file, name)
        except ValueError as error:
            _pass_over(file, path, error, passed, failures)
            continue
        if file not in readers or not len(readers[file]):
            readers.pop(file, None)
            passed[file] = "empty"
    return readers


def _fitting(
    files: list[Path], path: Path, query: str, wanted: str
) -> tuple[list[tuple[Reader, dict[str, str]]], dict[Path, str]]:
    """(the readers with the columns to read, why each other file is passed over)."""
    passed: dict[Path, str] = {}
    failures: list[ValueError] = []
    readers = _opened(files, path, passed, failures)
    # What some file has may be missing in another; what none has is a mistake of the query.
    everywhere = {column for reader in readers.values() for column in reader.columns}
    fields: dict[Path, dict[str, str]] = {}
    # Records first: beside them, texts other than .txt are a README or the like.
    for file in sorted(readers, key=_holds_records, reverse=True):
        # The first file that fits tells, since dicts keep their order.
        beside_records = bool(fields) and _holds_records(next(iter(fields)))
        if beside_records and not _holds_records(file) and file.suffix != ".txt":
            passed[file] = "a text beside records"
            continue
        try:
            columns = readers[file].columns
            fields[file] = choose_columns(query, columns, f"{file}?{query}", wanted, everywhere)
        except ValueError as error:
            _pass_over(file, path, error, passed, failures)
    if not fields:
        if failures:
            raise failures[0]
        raise ValueError(f"data {str(path)!r} is empty: no text in {len(files)} file(s)")
    return [(readers[file], fields[file]) for file in files if file in fields], passed


def _pass_over(
    file: Path, path: Path, error: ValueError, passed: dict[Path, str], failures: list[ValueError]
) -> None:
    # Tables, lists and texts of a folder may be meant for something else. A file of lines or a
    # parquet file is part of the data, and losing it would be a mistake.
    if file.suffix in (".jsonl", ".parquet") or not path.is_dir():
        raise error from None
    passed[file] = "other columns" if isinstance(error, OtherColumns) else str(error)
    failures.append(error)


def _holds_records(file: Path) -> bool:
    return reader_of(file.suffix) is not None


def _known(file: Path, rules: int) -> bool:
    if rules == 1:
        return file.suffix in EARLIER_FORMATS
    return file.suffix.lower() in RECORDS or file.suffix.lower() in TEXTS


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _tell_passed(path: Path, passed: Mapping[Path, str], files: int) -> None:
    shown = [f"{file.relative_to(path)} ({reason})" for file, reason in sorted(passed.items())]
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    names = ", ".join(shown[:3])
    logging.warning("passed over %d of %d files: %s%s", len(shown), files, names, more)
