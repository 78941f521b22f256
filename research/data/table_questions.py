"""The source "table_questions": questions about made tables and the queries that answer them, as
texts. Its held-out questions are of templates that are not learnt."""

import functools
from pathlib import Path
from typing import Any

from research.data.documents import digest
from research.tables.prompt import CUE, question_text
from research.tables.questions import Question, made_questions

_LEARNT, _HELD_OUT = 8_000, 400
_FORMAT = "1"  # part of the fingerprint: raise it when other questions are made


class TableQuestions:
    """So many questions as documents: the table, the question and its query."""

    fields = ("text",)

    def __init__(self, count: int, heldout: bool):
        self.rules = 2
        self.fingerprint = digest("table questions", _FORMAT, str(count), str(heldout))
        self._count, self._heldout = count, heldout

    @functools.cached_property
    def _made(self) -> list[Question]:
        # The seed of the held-out ones is that of the evaluation `queries`.
        return list(made_questions(self._count, int(self._heldout), self._heldout))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, str]:
        index = range(self._count)[index]
        one = self._made[index]
        text = f"{question_text(one.table.schema(), one.question)}{CUE} {one.query}"
        return {"text": text, "path": f"{one.template}:{index}"}


def open_table_questions(cache_dir: Path) -> tuple[TableQuestions, TableQuestions, dict[str, Any]]:
    """(questions of the learnt templates, of the held-out ones, {})."""
    return TableQuestions(_LEARNT, False), TableQuestions(_HELD_OUT, True), {}
