"""SQuAD's own files (arXiv:1606.05250): one JSON object of articles, their paragraphs and the
questions on these, as records {"id", "question", "context", "answers"}."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.data.documents import UnreadableRecord
from research.data.reader import BOM

COLUMNS = ("id", "question", "context", "answers")


def is_squad(head: bytes) -> bool:
    """True if a JSON file that begins so is one of SQuAD's."""
    return head.removeprefix(BOM).lstrip()[:1] == b"{" and b'"paragraphs"' in head


class Squad:
    """The questions of a file, in its order; one that is marked impossible has no answers. They are
    kept in memory."""

    columns = COLUMNS

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        try:
            articles = json.loads(path.read_bytes().decode("utf-8-sig"))["data"]
            self._records = [
                (paragraph["context"], question)
                for article in articles
                for paragraph in article["paragraphs"]
                for question in paragraph["qas"]
            ]
        except (ValueError, RecursionError, TypeError, KeyError) as error:
            reason = " ".join(f"{type(error).__name__} {error}".split())
            raise ValueError(
                f"{path} cannot be read as a file of SQuAD's, data > paragraphs > qas: {reason}"
            ) from None

    def __len__(self) -> int:
        return len(self._records)

    def identity(self, row: int) -> str:
        """The file and the place of the question, which some files give no id."""
        return f"{self.name}:{row}"

    def row(self, row: int, wanted: Sequence[str] = ()) -> dict[str, Any]:
        """One question with its context."""
        context, question = self._records[row]
        if not isinstance(question, Mapping):
            raise UnreadableRecord(str(self.path), row, f"{question!r:.40} is no question")
        answers = [] if question.get("is_impossible") else question.get("answers") or []
        return {
            "id": question.get("id", row),
            "question": question.get("question"),
            "context": context,
            "answers": answers,
        }
