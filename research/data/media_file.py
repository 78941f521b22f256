"""A picture, sound or video of a folder as a record, with the caption that lies beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.data.documents import UnreadableRecord
from research.data.media.kinds import kind_of


class MediaFile:
    """One record: {"image", "audio" or "video": the file, "text": what a .txt of its name says,
    "label": the name of its folder}. Without a .txt there is no text."""

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        self._kind = kind_of(path.suffix)
        self._caption = path.with_suffix(".txt")
        own = (self._kind, "label")
        self.columns = (*own, "text") if self._caption.is_file() else own
        self.beside = [self._caption] if self._caption.is_file() else []

    def __len__(self) -> int:
        return 1

    def identity(self, row: int) -> str:
        """The path in the folder."""
        return self.name

    def row(self, row: int, wanted: Sequence[str] = ()) -> dict[str, Any]:
        """The record. UnreadableRecord for a caption that is no text."""
        record: dict[str, Any] = {self._kind: self.path.name, "label": self.path.parent.name}
        if "text" in self.columns:
            try:
                record["text"] = self._caption.read_bytes().decode("utf-8-sig").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise UnreadableRecord(str(self._caption), row, error) from None
        return record
