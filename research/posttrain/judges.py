"""Rewards by packages that are made for checking answers: the extra [rl]."""

import importlib
import re
from collections.abc import Mapping
from typing import Any

_TAGGED = re.compile(r"<a>(.+?)</a>\s*$", re.DOTALL)


def math_verify(prompt: str, completion: str, record: Mapping[str, Any]) -> float | None:
    """1 if the last answer in the text equals the record's "answer" as mathematics: fractions,
    sets, intervals, LaTeX (package math-verify). None for an answer that it cannot read."""
    package = _package("math_verify", "math-verify")
    answer = str(record.get("answer", ""))
    gold = package.parse(answer if "$" in answer or "\\" in answer else f"${answer}$")
    if not gold:
        return None
    return float(package.verify(gold, package.parse(completion)))


def reasoning_gym(prompt: str, completion: str, record: Mapping[str, Any]) -> float:
    """What the task of a source "gym:NAME" gives for the text, or for its last <a>...</a>: from 0
    to 1, by the rules of the task (package reasoning-gym)."""
    package = _package("reasoning_gym", "reasoning-gym")
    if "entry" not in record:
        raise ValueError("the record has no 'entry'; take a source such as gym:chain_sum")
    entry, tagged = record["entry"], _TAGGED.search(completion)
    score = package.get_score_answer_fn(entry["metadata"]["source_dataset"])
    return float(score(answer=(tagged[1] if tagged else completion).strip(), entry=entry))


def _package(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"it needs the package {name}; pip install 'graft-research[rl]'") from None
