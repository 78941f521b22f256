"""The sources "number_words" and "number_texts": numbers in English and in German words.

They are a translation with another order of words ("four hundred forty-two", "vierhundert-
zweiundvierzig") that needs no download: a check of the machinery, no measure of translation. Both
hold out the same numbers.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from research.data.documents import digest, heldout_mask

PROMPT = "English: {inputs}\nGerman:"
_NUMBERS = range(10_000)
_ENGLISH = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_ENGLISH_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_GERMAN = (
    *("null", "ein", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn"),
    *("elf", "zwölf", "dreizehn", "vierzehn", "fünfzehn", "sechzehn", "siebzehn", "achtzehn"),
    "neunzehn",
)
_GERMAN_TENS = ("zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig")
_GERMAN_TENS += ("neunzig",)


def english(number: int) -> str:
    """A number below 10,000 in English words.

    >>> english(7042)
    'seven thousand forty-two'
    """
    parts = []
    for size, name in ((1000, "thousand"), (100, "hundred")):
        count, number = divmod(number, size)
        parts += [f"{_ENGLISH[count]} {name}"] if count else []
    if number >= 20:
        tens, ones = divmod(number, 10)
        parts.append(_ENGLISH_TENS[tens - 2] + (f"-{_ENGLISH[ones]}" if ones else ""))
    elif number or not parts:
        parts.append(_ENGLISH[number])
    return " ".join(parts)


def german(number: int) -> str:
    """A number below 10,000 in German words.

    >>> german(7042)
    'siebentausendzweiundvierzig'
    """
    text, rest = "", number
    for size, name in ((1000, "tausend"), (100, "hundert")):
        count, rest = divmod(rest, size)
        text += f"{_GERMAN[count]}{name}" if count else ""
    if rest >= 20:
        tens, ones = divmod(rest, 10)
        return text + (f"{_GERMAN[ones]}und" if ones else "") + _GERMAN_TENS[tens - 2]
    if rest == 1:  # "ein" in front of another word, "eins" at the end
        return f"{text}eins"
    return text + _GERMAN[rest] if rest or not text else text


class Numbers:
    """All numbers as documents. `fields` are those of the layout: "inputs" and "targets", or "text"
    with both languages."""

    def __init__(self, fields: tuple[str, ...]):
        self.rules, self.fields = 2, fields
        self.fingerprint = digest("number words", "1", *fields)

    def __len__(self) -> int:
        return len(_NUMBERS)

    def __getitem__(self, index: int) -> dict[str, str]:
        number = _NUMBERS[index]
        values = {"inputs": english(number), "targets": german(number)}
        values["text"] = f"{PROMPT.format_map(values)} {values['targets']}"
        return {name: values[name] for name in self.fields} | {"path": str(number)}

    def identities(self) -> Iterator[str]:
        """The paths, in order: "0", "1", ..."""
        return map(str, _NUMBERS)


def open_number_pairs(cache_dir: Path) -> tuple[Numbers, None, dict[str, Any]]:
    """(pairs, None since some are held out by their paths, {})."""
    return Numbers(("inputs", "targets")), None, {}


def open_number_texts(cache_dir: Path) -> tuple[Numbers, None, dict[str, Any]]:
    """The same as texts, for a decoder that is told the languages."""
    return Numbers(("text",)), None, {}


def heldout_numbers() -> list[dict[str, Any]]:
    """Records {"id", "inputs", "targets"} of the numbers that both sources hold out."""
    numbers, mask = Numbers(("inputs", "targets")), heldout_mask(map(str, _NUMBERS))
    return [
        {"id": str(number), **{name: numbers[number][name] for name in numbers.fields}}
        for number in _NUMBERS
        if mask[number]
    ]
