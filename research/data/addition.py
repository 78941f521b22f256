"""The sources "addition" and "addition_texts", sums of two numbers of two digits, and
"asked_addition", sums of two numbers up to 25 as a model that chats is asked for them; made here.

In the first two the digits of the sum are written from the last to the first, the order in which
they are computed: "47+58=" is followed by "501". Both hold out the same sums.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from research.data.documents import Documents, Subset, digest

_NUMBERS = range(10, 100)
_ASKED = range(1, 26)
QUESTION = "What is {} + {}? Write the answer as <a>number</a>."


class Sums:
    """All sums as documents. `fields` are those of the layout: "prompt" and "record" with the
    answer, or "text" with both sides."""

    def __init__(self, fields: tuple[str, ...]):
        self.fields = fields
        self.fingerprint = digest("addition", "1", *fields)

    def __len__(self) -> int:
        return len(_NUMBERS) ** 2

    def __getitem__(self, index: int) -> dict[str, str]:
        path = _path(range(len(self))[index])
        answer = str(sum(map(int, path.split("+"))))[::-1]
        prompt = f"{path}="
        record = json.dumps({"prompt": prompt, "answer": answer})
        values = {"prompt": prompt, "record": record, "text": prompt + answer}
        return {name: values[name] for name in self.fields} | {"path": path}

    def identities(self) -> Iterator[str]:
        """The paths, in order: "10+10", "10+11", ..."""
        return map(_path, range(len(self)))


def open_addition(cache_dir: Path) -> tuple[Documents, None, dict[str, Any]]:
    """(prompts with their answers, None since some are held out by their paths, {})."""
    return Sums(("prompt", "record")), None, {}


def open_addition_texts(cache_dir: Path) -> tuple[Documents, None, dict[str, Any]]:
    """The same as texts, for a model to learn the form from before it is rewarded."""
    return Sums(("text",)), None, {}


class AskedSums:
    """All sums of two numbers up to 25 as prompts, each a message of a user's that says how the
    answer is to be written."""

    fields = ("prompt", "record")
    fingerprint = digest("asked addition", "1", QUESTION)

    def __len__(self) -> int:
        return len(_ASKED) ** 2

    def __getitem__(self, index: int) -> dict[str, str]:
        first, second = _asked(index)
        prompt = [{"role": "user", "content": QUESTION.format(first, second)}]
        record = json.dumps({"prompt": prompt, "answer": str(first + second)})
        return {"prompt": json.dumps(prompt), "record": record, "path": f"{first}+{second}"}

    def identities(self) -> Iterator[str]:
        """The paths, in order: "1+1", "1+2", ..."""
        return (self[index]["path"] for index in range(len(self)))


def open_asked_addition(cache_dir: Path) -> tuple[Documents, Documents, dict[str, Any]]:
    """(500 sums, 125 held out, {}): so many that a gain on them can be told from luck. Held out are
    those of two numbers that differ by a multiple of 5, so that no sum is asked on both sides."""
    sums, rows = AskedSums(), np.arange(len(_ASKED) ** 2)
    held_out = (rows // len(_ASKED) - rows % len(_ASKED)) % 5 == 0
    return Subset(sums, rows[~held_out]), Subset(sums, rows[held_out]), {}


def _asked(index: int) -> tuple[int, int]:
    first, second = divmod(range(len(_ASKED) ** 2)[index], len(_ASKED))
    return _ASKED[first], _ASKED[second]


def _path(index: int) -> str:
    first, second = divmod(index, len(_NUMBERS))
    return f"{_NUMBERS[first]}+{_NUMBERS[second]}"
