"""Shards as WebDataset writes them: a tar of files, of which neighbours with one name before the
first dot are one sample (github.com/webdataset/webdataset)."""

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.data.documents import UnreadableRecord
from research.data.media.kinds import kind_of
from research.data.media.limits import LIMITS

# The column of a member that is no medium, by the end of its name.
_COLUMNS = {".txt": "text", ".text": "text", ".caption": "text", ".cls": "label", ".json": "json"}
_TEXT_BYTES = 16 * 1024 * 1024


def column_of(suffix: str) -> str:
    """The column that a file of a sample fills, by its suffix: "image", "audio", "video", "text",
    "label" or "json"; "" for others, which are not read. A pickled object (.pkl, .pth, .pyd) is
    never one: reading it could run what it says."""
    return kind_of(suffix) or _COLUMNS.get(suffix.lower(), "")


class Shard:
    """The samples of a .tar, in its order; a `Reader` of `research.data.reader`.

    Only regular files count: links, devices and folders are passed over. The names, places and
    sizes of members are read when it is opened, their contents when a sample is asked for, so a
    shard of any size takes little memory. ValueError for a file that is no tar, is compressed, or
    has more members than `limits.members`.
    """

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        self._samples: list[dict[str, tuple[int, int, str]]] = []
        self._keys: list[str] = []
        self._index()
        found = {column for sample in self._samples for column in sample}
        if "json" in found:
            found |= set(self._fields(next(n for n, s in enumerate(self._samples) if "json" in s)))
        self.columns = tuple(sorted(found - {"json"}))

    def _index(self) -> None:
        key = None
        try:
            with tarfile.open(self.path, "r:") as tar:  # "r:" reads no compressed one
                for count, member in enumerate(tar):
                    if count >= LIMITS.members:
                        raise ValueError(
                            f"{self.path} has more than {LIMITS.members:,} members; split it"
                        )
                    folder, _, file = member.name.rpartition("/")
                    stem, _, suffixes = file.partition(".")
                    column = column_of("." + suffixes.rpartition(".")[2].lower())
                    if not member.isreg() or not column or not stem:
                        continue
                    if (folder, stem) != key:
                        key = (folder, stem)
                        self._samples.append({})
                        self._keys.append(member.name.partition(".")[0])
                    # The first of two pictures is the sample's; others have names of their own.
                    place = (member.offset_data, member.size, member.name)
                    self._samples[-1].setdefault(column, place)
        except tarfile.TarError as error:
            raise ValueError(
                f"{self.path} cannot be read as a tar: {error}; unpack a compressed one"
            ) from None

    def __len__(self) -> int:
        return len(self._samples)

    def identity(self, row: int) -> str:
        """FILE:NUMBER."""
        return f"{self.name}:{row}"

    def row(self, row: int, wanted: Sequence[str] = ()) -> dict[str, Any]:
        """The sample's media as bytes, its texts, and the fields of its .json; of these only the
        `wanted` ones, () for all. UnreadableRecord for a member over its limit and a broken
        text."""
        sample, values = self._samples[row], self._fields(row)
        for column, place in sample.items():
            if column != "json" and (not wanted or column in wanted):
                values[column] = self._read(row, column, place)
        return values

    def _fields(self, row: int) -> dict[str, Any]:
        """The fields of the sample's .json, {} without one."""
        if "json" not in self._samples[row]:
            return {}
        text = self._read(row, "json", self._samples[row]["json"])
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UnreadableRecord(str(self.path), row, error) from None
        if not isinstance(fields, dict):
            raise UnreadableRecord(str(self.path), row, "its .json is no object")
        return fields

    def _read(self, row: int, column: str, place: tuple[int, int, str]) -> Any:
        offset, size, name = place
        media = column in ("image", "audio", "video")
        most = LIMITS.file_bytes if media else _TEXT_BYTES
        if size > most:
            reason = f"{name} has {size:,} bytes, over the {most:,} that are read"
            raise UnreadableRecord(str(self.path), row, reason)
        try:
            with open(self.path, "rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise UnreadableRecord(str(self.path), row, error) from None
        if len(content) < size:
            raise UnreadableRecord(str(self.path), row, f"{name} is cut off")
        if media:
            return content
        try:
            return content.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UnreadableRecord(str(self.path), row, f"{name}: {error}") from None
