"""Questions about tables: a query that the model writes, run by DuckDB, and what it finds."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from research.apply.documents import Document
from research.apply.job import Job, Result
from research.apply.writer import Writer
from research.tables.engine import Tables
from research.tables.prompt import CUE, INSTRUCTION, query_of, question_text


@dataclass(frozen=True)
class Ask(Job):
    """Each question is asked of the tables by one query, which the engine lets read and nothing
    else."""

    tables: Tables

    max_tokens: ClassVar[int] = 128

    @classmethod
    def make(cls, flags: Mapping[str, Any], writer: Writer) -> "Ask":
        """Reads the tables; a line on standard error for each that is left out. ValueError for
        none, and for a window that does not hold their columns."""
        if not flags["table"]:
            raise ValueError("questions are about tables; give --table=FILE, once for each")
        if writer.two_sided:
            raise ValueError("an encoder-decoder writes no query; give a decoder")
        tables = Tables(flags["table"])
        for line in tables.told:
            print(line, file=sys.stderr)
        room = writer.room(INSTRUCTION, CUE)
        if (size := writer.count(question_text(tables.schema, ""))) >= room:
            raise ValueError(
                f"the columns of the tables are {size} tokens, and there is room for {room} beside "
                "a query; raise --window or give fewer tables"
            )
        return cls(tables)

    def input(self, document: Document) -> str:
        """The question."""
        if not document.text.strip():
            raise ValueError("has no question")
        return document.text

    def run(self, documents: Sequence[Document], writer: Writer) -> list[Result]:
        """{"output": what the query found, "query", "columns", "rows", "more"}; "more" says that
        rows were left out. A query that the engine refuses is an error."""
        prompts = [
            writer.prompt(INSTRUCTION, question_text(self.tables.schema, one.text), CUE)
            for one in documents
        ]
        return [self._result(text) for text in writer.write(prompts)]

    def _result(self, written: str) -> Result:
        query = query_of(written)
        try:
            found = self.tables.ask(query)
        except ValueError as error:
            return ValueError(f"the query {' '.join(query.split())!r} was refused: {error}")
        told = {"output": found.text(), "query": query, "columns": list(found.columns)}
        return {**told, "rows": [list(row) for row in found.rows], "more": found.more}
