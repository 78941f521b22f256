"""Briefs of texts to write, and the rules by which a text meets them."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

FIELDS = ("min_words", "max_words", "keywords", "avoid", "tone", "format")
# What a chat model is told of a format, and whether a text has it.
FORMATS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "paragraph": ("one paragraph", lambda text: "\n" not in text.strip()),
    "bullets": (
        "bullet points, each on a line that begins with '- '",
        lambda text: all(re.match(r"[-*•] ", line.strip()) for line in _lines(text)),
    ),
    "headline": (
        "one headline, without a full stop",
        lambda text: len(_lines(text)) == 1 and not text.strip().endswith("."),
    ),
    "json": ("one JSON object and nothing else", lambda text: _is_object(text)),
    "email": (
        "an e-mail that begins with 'Subject: '",
        lambda text: text.strip().startswith("Subject:") and len(_lines(text)) > 1,
    ),
}


@dataclass(frozen=True)
class Brief:
    """What a text is about and what it must be: words between two numbers (0: any), words that it
    has and words that it has not, a tone, which no rule checks, and a row of `FORMATS`."""

    topic: str
    min_words: int = 0
    max_words: int = 0
    keywords: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    tone: str = ""
    format: str = ""

    def instruction(self) -> str:
        """The brief as a request."""
        told = [f"Write a text about: {self.topic}"]
        if self.format:
            told.append(f"Write it as {FORMATS[self.format][0]}.")
        if self.tone:
            told.append(f"Its tone is {self.tone}.")
        if self.min_words or self.max_words:
            least = f"at least {self.min_words}" if self.min_words else ""
            most = f"at most {self.max_words}" if self.max_words else ""
            told.append(f"Use {' and '.join(filter(None, (least, most)))} words.")
        if self.keywords:
            told.append(f"Use these words: {', '.join(self.keywords)}.")
        if self.avoid:
            told.append(f"Do not use these words: {', '.join(self.avoid)}.")
        return "\n".join([*told, "Answer with the text alone."])

    def met(self, text: str) -> dict[str, bool]:
        """Whether a text meets each constraint that a rule can check, by name."""
        count = len(text.split())
        rules: dict[str, bool] = {}
        if self.min_words:
            rules["min_words"] = count >= self.min_words
        if self.max_words:
            rules["max_words"] = count <= self.max_words
        rules |= {f"keyword {word}": _has(text, word) for word in self.keywords}
        rules |= {f"avoid {word}": not _has(text, word) for word in self.avoid}
        if self.format:
            rules["format"] = bool(text.strip()) and FORMATS[self.format][1](text)
        return rules


def read_brief(text: str, fields: Mapping[str, Any]) -> Brief:
    """The brief of a record, or of a text alone, which is its topic. ValueError for a brief without
    a topic, and for constraints that are none. Empty cells of a table are no constraints."""
    if not text.strip():
        raise ValueError("has no brief; give it a field 'brief' or 'topic'")
    given = {name: fields[name] for name in FIELDS if fields.get(name) not in (None, "", [])}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name in ("min_words", "max_words"):
            values[name] = _number(name, value)
        elif name in ("keywords", "avoid"):
            values[name] = _words(name, value)
        elif not isinstance(value, str):
            raise ValueError(f"has {name}={value!r}, wanted text")
        else:
            values[name] = value.strip()
    brief = Brief(text.strip(), **values)
    if brief.format and brief.format not in FORMATS:
        raise ValueError(f"has format={brief.format!r}; there are {', '.join(FORMATS)}")
    if brief.max_words and brief.min_words > brief.max_words:
        raise ValueError(f"wants {brief.min_words} words at least and {brief.max_words} at most")
    return brief


def _number(name: str, value: Any) -> int:
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if type(number) is not int or number < 1:
        raise ValueError(f"has {name}={value!r}, wanted a positive number")
    return number


def _words(name: str, value: Any) -> tuple[str, ...]:
    # Of a table, the words of a cell are apart by commas.
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(one, str) for one in words):
        raise ValueError(f"has {name}={value!r}, wanted a list of words")
    return tuple(word.strip() for word in words if word.strip())


def _has(text: str, word: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
