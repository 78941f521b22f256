"""The documents of a job: files, folders, lines of records, or standard input."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from research.data.formats import RECORDS, TEXTS
from research.data.reader import BOM

MOST_BYTES = 64 * 1024 * 1024  # of one document; a larger one is no text that anyone reads
# Where the text of a record stands, first come first served.
NAMES = ("text", "input", "document", "article", "prompt", "question", "content", "brief", "topic")


@dataclass(frozen=True)
class Document:
    """A document: the name of its `source`, such as "mail/3.txt" or "briefs.jsonl:4", its text,
    and the fields of the record that it is, {} for a text alone."""

    source: str
    text: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """A document that was left out, and why."""

    source: str
    reason: str


Given = Document | LeftOut


def read_documents(given: str, stdin: BinaryIO, flag: str = "--input") -> list[Given]:
    """The documents of a file, of the files below a folder in the order of their paths, or of
    standard input ("-"), which is one text, or a record a line if it begins with {. What cannot be
    read is there as `LeftOut`. ValueError for a path that does not exist, and for a folder without
    a file."""
    if given == "-":
        content = stdin.read()
        lines = content.removeprefix(BOM).lstrip()[:1] == b"{"
        return list(_records("stdin", content)) if lines else [_document("stdin", content)]
    path = Path(given).expanduser()
    if not path.exists():
        raise ValueError(f"{flag}={given} does not exist; give a file, a folder, or - for a pipe")
    files = [path]
    if path.is_dir():
        inside = (one for one in sorted(path.rglob("*")) if one.is_file())
        files = [one for one in inside if not _hidden(one.relative_to(path))]
        if not files:
            raise ValueError(f"{flag}={given} is a folder without files")
    return [
        one
        for file in files
        for one in _of_file(file, file.relative_to(path).as_posix() if path.is_dir() else file.name)
    ]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _of_file(file: Path, name: str) -> Iterator[Given]:
    suffix = file.suffix.lower()
    try:
        if suffix in (".jsonl", ".ndjson"):
            yield from _records(name, file.read_bytes())
        elif suffix in RECORDS and suffix not in TEXTS:
            yield from _rows(file, name)
        elif file.stat().st_size > MOST_BYTES:
            yield LeftOut(name, f"{file.stat().st_size:,} bytes, and {MOST_BYTES:,} are the most")
        else:
            yield _document(name, file.read_bytes())
    except OSError as error:
        yield LeftOut(name, f"cannot be read: {error.strerror}")


def _rows(file: Path, name: str) -> Iterator[Given]:
    """The records of a table or a list."""
    try:
        reader = RECORDS[file.suffix.lower()](file, name)
        columns, count = reader.columns, len(reader)
    except ValueError as error:
        yield LeftOut(name, str(error))
        return
    for row in range(count):
        try:
            yield _record(f"{name}:{row + 1}", dict(reader.row(row, columns)))
        except ValueError as error:
            yield LeftOut(f"{name}:{row + 1}", str(error))


def _records(name: str, content: bytes) -> Iterator[Given]:
    """A record on each line."""
    for number, line in enumerate(content.removeprefix(BOM).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            yield _record(f"{name}:{number}", json.loads(line.decode("utf-8")))
        except (ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())[:120]
            yield LeftOut(f"{name}:{number}", f"is no JSON record: {reason}")


def _record(source: str, record: Any) -> Given:
    if isinstance(record, str):
        return _text(source, record, {})
    if not isinstance(record, dict):
        return LeftOut(source, f"is a JSON {type(record).__name__}, wanted an object or a text")
    name = next((name for name in NAMES if isinstance(record.get(name), str)), None)
    # A job may want other fields than one text: it says so itself.
    return _text(source, record[name] if name else "", record)


def _document(source: str, content: bytes) -> Given:
    if b"\0" in content[:8192]:
        return LeftOut(source, "is binary and no text")
    try:
        return _text(source, content.removeprefix(BOM).decode("utf-8"), {})
    except UnicodeDecodeError as error:
        return LeftOut(source, f"is no UTF-8: byte {error.start} is 0x{content[error.start]:02x}")


def _text(source: str, text: str, fields: dict[str, Any]) -> Given:
    if not fields and not text.strip():
        return LeftOut(source, "is empty")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return LeftOut(source, "has half a surrogate pair, which is no character")
    return Document(source, text, fields)
