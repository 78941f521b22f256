"""The sources "addition" and "addition_texts", sums of two numbers of two digits, and
"tagged_addition", sums of two numbers up to 20 whose answers are to stand in tags; made here.

In the first two the digits of the sum are written from the last to the first, the order in which
they are computed: "47+58=" is followed by "501". Both hold out the same sums. The third is for a
model that knows how to add and not how the answer is to be written, which one example shows:
"2 + 3 = <a>5</a>\\n17 + 8 =" is to be followed by "<a>25</a>".
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from research.data.documents import Documents, Subset, digest

_NUMBERS = range(10, 100)
_TAGGED = range(1, 21)
_EXAMPLE = "2 + 3 = <a>5</a>"


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


class TaggedSums:
    """All sums of two numbers up to 20 as prompts, each behind an example of the answer's form."""

    fields = ("prompt", "record")
    fingerprint = digest("tagged addition", "1", _EXAMPLE)

    def __len__(self) -> int:
        return len(_TAGGED) ** 2

    def __getitem__(self, index: int) -> dict[str, str]:
        first, second = (_TAGGED[i] for i in divmod(range(len(self))[index], len(_TAGGED)))
        prompt = f"{_EXAMPLE}\n{first} + {second} ="
        record = json.dumps({"prompt": prompt, "answer": f"<a>{first + second}</a>"})
        return {"prompt": prompt, "record": record, "path": f"{first}+{second}"}

    def identities(self) -> Iterator[str]:
        """The paths, in order: "1+1", "1+2", ..."""
        return (self[index]["path"] for index in range(len(self)))


def open_tagged_addition(cache_dir: Path) -> tuple[Documents, Documents, dict[str, Any]]:
    """(320 sums, 80 held out, {}): so many that a gain on them can be told from luck. Held out are
    those of two numbers that differ by a multiple of 5, so that no sum is asked on both sides."""
    sums = TaggedSums()
    first, second = np.divmod(np.arange(len(sums)), len(_TAGGED))
    held_out = (first - second) % 5 == 0
    return Subset(sums, np.flatnonzero(~held_out)), Subset(sums, np.flatnonzero(held_out)), {}


def _path(index: int) -> str:
    first, second = divmod(index, len(_NUMBERS))
    return f"{_NUMBERS[first]}+{_NUMBERS[second]}"
