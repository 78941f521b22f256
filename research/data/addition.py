"""The sources "addition" and "addition_texts": sums of two numbers of two digits, made here.

The digits of the sum are written from the last to the first, the order in which they are computed:
"47+58=" is followed by "501". Both sources hold out the same sums.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from research.data.documents import Documents, digest

_NUMBERS = range(10, 100)


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


def _path(index: int) -> str:
    first, second = divmod(index, len(_NUMBERS))
    return f"{_NUMBERS[first]}+{_NUMBERS[second]}"
