"""The table of formats: from the suffix of a file to its reader. A new format is one row."""

from collections.abc import Callable
from pathlib import Path

from research.data.conll import Conll
from research.data.csv_records import Table
from research.data.json_records import JsonLines, open_json
from research.data.media.kinds import KINDS, kind_of
from research.data.media_file import MediaFile
from research.data.reader import Reader
from research.data.shard import Shard


def open_parquet(path: Path, name: str) -> Reader:
    """The rows of a parquet file."""
    from research.data.parquet import Parquet  # pyarrow takes a while to import

    return Parquet(path, name)


# Records of fields, by the suffix of their file in lower case.
RECORDS: dict[str, Callable[[Path, str], Reader]] = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": open_json,
    ".parquet": open_parquet,
    ".csv": Table,
    ".tsv": Table,
    ".conll": Conll,
    ".bio": Conll,
    ".iob": Conll,
    ".iob2": Conll,
}
# What is a record beside these for layouts with media; to others pictures are none of their data.
MEDIA_RECORDS: dict[str, Callable[[Path, str], Reader]] = {
    **{suffix: MediaFile for suffixes in KINDS.values() for suffix in suffixes},
    ".tar": Shard,
}


def reader_of(suffix: str) -> Callable[[Path, str], Reader] | None:
    """What reads files of records with this ending, None for one that has none."""
    return RECORDS.get(suffix.lower()) or MEDIA_RECORDS.get(suffix.lower())


# Files that are a text from end to end: prose, code, settings.
TEXTS = frozenset(
    ".txt .text .md .markdown .rst .tex .log .py .pyi .c .h .cc .cpp .hpp .cu .java .kt .scala "
    ".js .ts .jsx .tsx .go .rs .rb .php .pl .lua .r .jl .swift .hs .ml .cs .sh .bash .sql .css "
    ".toml .yaml .yml .ini .cfg".split()
)


def files_with_media(files: list[Path]) -> list[Path]:
    """Those of a folder's files that hold records with media: tables of records and shards, or if
    there are none, every picture, sound and video by itself."""
    tables = [file for file in files if file.suffix.lower() in (*RECORDS, ".tar")]
    return tables or [file for file in files if kind_of(file.suffix)]
