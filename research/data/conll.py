"""Files of CoNLL's kind (arXiv:cs/0306050): a word a line with its tag in the last column, and a
blank line between sentences; as records {"tokens": [...], "tags": [...]}."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from research.data.documents import UnreadableRecord
from research.data.reader import BOM

_BEGINS = b"-DOCSTART-"  # the word of a line that separates documents


class Conll:
    """The sentences of a file, in its order, which are kept in memory. Columns are apart by tabs,
    or else by spaces; lines that begin with "# " are comments of CoNLL-U."""

    columns = ("tokens", "tags")

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        self._sentences = list(_sentences(path.read_bytes().removeprefix(BOM)))

    def __len__(self) -> int:
        return len(self._sentences)

    def identity(self, row: int) -> str:
        """FILE:NUMBER."""
        return f"{self.name}:{row}"

    def row(self, row: int, wanted: Sequence[str] = ()) -> dict[str, Any]:
        """The words of a sentence and their tags."""
        line, lines = self._sentences[row]
        tokens, tags = [], []
        for number, text in enumerate(lines, line):
            try:
                cells = re.split(r"\t" if b"\t" in text else r"\s+", text.decode("utf-8").strip())
            except UnicodeDecodeError as error:
                raise UnreadableRecord(str(self.path), row, f"line {number}: {error}") from None
            if len(cells) < 2:
                reason = f"line {number} has a word and no tag: {text[:40]!r}"
                raise UnreadableRecord(str(self.path), row, reason)
            tokens.append(cells[0])
            tags.append(cells[-1])
        return {"tokens": tokens, "tags": tags}


def _sentences(content: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """(number of the first line, the lines) of each sentence."""
    lines: list[bytes] = []
    first = 1
    # A last blank line ends the last sentence.
    for number, line in enumerate([*content.split(b"\n"), b""], 1):
        if line.startswith(b"# "):
            continue
        if line.strip() and not line.startswith(_BEGINS):
            first = first if lines else number
            lines.append(line.rstrip(b"\r"))
        elif lines:
            yield first, lines
            lines = []
