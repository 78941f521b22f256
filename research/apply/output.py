"""The file of a job's results, which a job that was stopped goes on with."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from research.files import replacing

KEY = ("source", "input")


class Output:
    """Lines {"source", "input", "output", ...} of a .jsonl file, or the plain outputs in another.

    Lines are added a batch at a time, before the next is made. A document with a line in the file
    is `done`, whatever else the file has. A last line that a kill has cut off is dropped.
    ValueError for a file that is no such output.
    """

    def __init__(self, path: Path):
        self.path, self._json = path, path.suffix == ".jsonl"
        self._done: set[tuple[str, str]] = set()
        # Texts alone do not say whose they are, so their lines are kept beside them.
        self._lines = path if self._json else path.with_name(f"{path.name}.jsonl")
        if path.is_dir() or self._lines.is_dir():
            raise ValueError(f"--output={path} is a folder; give a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._lines.exists():
            self._read()

    def _read(self) -> None:
        content = self._lines.read_bytes()
        whole, _, rest = content.rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                self._done.add((row["source"], row["input"]))
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{self._lines}, line {number} is no line of a job's output; give another "
                    "--output"
                ) from None
        if rest:
            with replacing(self._lines) as file:
                file.write(whole + b"\n" if whole else b"")

    def done(self, source: str, text: str) -> bool:
        """Whether the file has a line of this document."""
        return (source, text) in self._done

    def __len__(self) -> int:
        return len(self._done)

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Adds a line for each row."""
        rows = list(rows)
        with open(self._lines, "a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._done |= {(row["source"], row["input"]) for row in rows}
        if not self._json:
            with open(self.path, "a", encoding="utf-8") as file:
                for row in rows:
                    file.write(row["output"].rstrip("\n") + "\n\n")
