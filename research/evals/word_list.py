"""Lists of offensive words with how severe each is."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from research.evals.records import read_records

_WORD = re.compile(r"[\w@$*'’-]+")
_LONGEST = 3  # words of an entry that is looked up


@dataclass(frozen=True)
class WordList:
    """Severities from 0 to 1 by lower-case word, or words with one space between."""

    severity: Mapping[str, float]

    def found(self, text: str) -> list[tuple[str, float]]:
        """(entry, severity) of each place where one stands as whole words, longer entries first and
        none within another."""
        words = [word.lower() for word in _WORD.findall(text)]
        hits, at = [], 0
        while at < len(words):
            for size in range(_LONGEST, 0, -1):
                entry = " ".join(words[at : at + size])
                if at + size <= len(words) and entry in self.severity:
                    hits.append((entry, self.severity[entry]))
                    at += size - 1
                    break
            at += 1
        return hits

    def worst(self, text: str) -> float:
        """The severity of the worst entry in a text, 0 without one."""
        return max((severity for _, severity in self.found(text)), default=0.0)


def read_word_list(source: str) -> WordList:
    """The list of a file or of "profanity": "text", "word" or HurtLex's "lemma", and "severity", or
    "severity_rating" of 1 to 3, 1 where there is none. ValueError for a severity that is no number
    in range."""
    severity = {}
    for id, record in read_records(source):
        where = f"record {id} of {source}"
        named = (record.get(name) for name in ("text", "word", "lemma"))
        word = str(next(filter(None, named), "")).lower().strip()
        given = record.get("severity", record.get("severity_rating", 1))
        top = 1 if "severity" in record or "severity_rating" not in record else 3
        try:
            number = float(given) / top
        except (TypeError, ValueError):
            number = -1.0
        if not word or not 0 <= number <= 1:
            raise ValueError(
                f"{where} has word {word!r} of severity {given!r}; wanted a text and a severity of "
                f"0 to {top}"
            )
        severity[" ".join(_WORD.findall(word))] = number
    severity.pop("", None)
    return WordList(severity)
