"""Evaluations with their data and settings: those that need no file of a person's own, and groups
of them under one name."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# By name, what `config.evals.NAME = {}` amounts to. Prompts are those under which the numbers of
# such tasks are published, as far as there is one.
READY: dict[str, dict[str, Any]] = {
    # arXiv:1905.10044: yes or no to a question on a passage.
    "boolq": {
        "kind": "choices",
        "data": "boolq",
        "prompt": "{passage}\nQuestion: {question}?\nAnswer:",
        "choices": ("no", "yes"),
    },
    # arXiv:1911.11641: which of two ways reaches a goal.
    "piqa": {"kind": "choices", "data": "piqa", "prompt": "Question: {question}\nAnswer:"},
    # arXiv:1811.00937 and arXiv:1809.02789.
    "commonsenseqa": {
        "kind": "choices",
        "data": "commonsenseqa",
        "prompt": "Question: {question}\nAnswer:",
    },
    "openbookqa": {"kind": "choices", "data": "openbookqa"},
    # arXiv:1808.08745: a sentence that sums an article up.
    "xsum": {
        "kind": "generation",
        "data": "xsum",
        "prompt": "{document}\n\nThe article in one sentence:",
        "reference": "summary",
        "metrics": ("rouge",),
        "stop": ("\n",),
    },
    "nq_open": {
        "kind": "generation",
        "data": "nq_open",
        "prompt": "Q: {question}?\nA:",
        "stop": ("\n",),
        "max_tokens": 16,
        "shots": 5,
    },
    # arXiv:2107.03374.
    "humaneval": {"kind": "code", "data": "humaneval"},
}


@dataclass(frozen=True)
class Member:
    """An evaluation of a group.

    small   settings for a subset, drawn by a seed
    full    those for all of the data
    masked  whether a masked model can be measured too
    """

    small: dict[str, Any]
    full: dict[str, Any]
    masked: bool = False


_ALL = {"limit": 0}
# By the name of a group and of the evaluation. The sizes are from a rough count of tokens, for a
# model of SmolLM2's size on a CPU; how long they take was not timed.
GROUPS: dict[str, dict[str, Member]] = {
    "bias": {
        "crows_pairs": Member({"limit": 20}, _ALL, masked=True),
        "stereoset": Member({"limit": 10}, {"limit": 0, "texts": 0}, masked=True),
        "bbq": Member({"limit": 2, "least": 2}, {"limit": 0, "questions": 0}),
        "winobias": Member({"limit": 25}, _ALL, masked=True),
        "winogender": Member({"limit": 20}, _ALL, masked=True),
        "bold": Member({"limit": 10}, _ALL),
        "honest": Member({"limit": 10}, {"limit": 0, "identities": 0}),
    },
    "truth": {
        "truthfulness": Member({"limit": 50}, _ALL),
        "snowball": Member({"limit": 30}, _ALL),
        "selfcheck": Member({"limit": 20}, _ALL),
        "semantic_entropy": Member({"limit": 20}, _ALL),
        "calibration": Member({"limit": 200}, _ALL),
    },
    "safety": {
        "refusal": Member({"limit": 40}, _ALL),
        "toxicity": Member({"limit": 14}, {"limit": 0, "samples": 25}),
        "memorisation": Member({"limit": 50}, {"limit": 1000}),
        "pii": Member({}, {}),
    },
}
FULL = ":full"  # behind the name of a group: all of the data


def members(names: Iterable[str], kind: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """(the settings by name of evaluations, where "bias", "truth" and "safety" stand for those of a
    group and "bias:full" for all of their data; what of a group a model of this `kind` cannot be
    measured on).

    >>> members(["boolq", "bias"], "encoder")[0]["stereoset"]
    {'limit': 10}
    """
    found: dict[str, dict[str, Any]] = {}
    left = []
    for name in names:
        group = GROUPS.get(name.removesuffix(FULL))
        if group is None:
            found.setdefault(name, {})
            continue
        for member, of in group.items():
            if kind == "decoder" or (kind == "encoder" and of.masked):
                found[member] = dict(of.full if name.endswith(FULL) else of.small)
            else:
                left.append(member)
    return found, left
