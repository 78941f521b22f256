"""What is wrong with the media of documents, before any goes into a batch: pictures and videos by
their headers, sounds by all of their samples."""

import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from research.data.documents import Documents, UnreadableRecord, digest
from research.data.media.images import inspect_image
from research.data.media.kinds import Medium
from research.data.media.limits import BadMedia, read_bytes
from research.data.media.soft_tokens import SoftTokens
from research.data.media.sound import inspect_sound
from research.downloads.cache import remembered

_RULES = "2"  # raise it when other media are refused or other notes are made


class WithMedia(Documents, Protocol):
    """Documents with media. `media(i)` gives those of document i in the order of their places;
    UnreadableRecord where there are none to give. Only paths and bytes: nothing is decoded."""

    def media(self, index: int) -> list[Medium]: ...


class Surveyed:
    """Documents of which those with broken media are unreadable. All are looked at once, the first
    time that these documents are opened, and what was found is kept in the cache: a change of
    media files without a change of the records that name them is not seen again."""

    def __init__(self, documents: WithMedia, cache: Path, soft: SoftTokens):
        self.fields, self._documents = documents.fields, documents
        self.rules = getattr(documents, "rules", 1)
        # How long a sound may be is said by the model.
        frames = soft.sound.frames if soft.sound else 0
        self.fingerprint = digest("media", _RULES, str(frames), documents.fingerprint)
        file = cache / "media" / f"{self.fingerprint[:32]}.json"
        found = remembered(file, functools.partial(_survey, documents, frames))
        self._bad: dict[str, str] = found["bad"]
        for note, (count, first) in found["notes"].items():
            logging.warning(
                "%d of %d records have media that are %s, the first: %s",
                count,
                len(documents),
                note,
                first,
            )

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> dict[str, str]:
        document = self._documents[index]
        if str(index) in self._bad:
            raise UnreadableRecord(document["path"], index, self._bad[str(index)])
        return document

    def media(self, index: int) -> list[Medium]:
        """The media of document `index`."""
        return self._documents.media(index)


def _survey(documents: WithMedia, frames: int) -> dict[str, Any]:
    """{"bad": {index: reason}, "notes": {note: [records, the path of the first]}}."""
    bad: dict[str, str] = {}
    notes: dict[str, list[Any]] = {}
    for index in range(len(documents)):
        try:
            path, media = documents[index]["path"], documents.media(index)
        except (UnreadableRecord, ValueError):  # counted where the records are tokenised
            continue
        try:
            found = set(_notes(media, frames))
        except BadMedia as error:
            bad[str(index)] = str(error)
            continue
        for note in sorted(found):
            notes.setdefault(note, [0, path])[0] += 1
    return {"bad": bad, "notes": notes}


def _notes(media: list[Medium], frames: int) -> Iterator[str]:
    for number, (kind, source) in enumerate(media):
        where = f"{kind} {number}" + (f" ({source})" if isinstance(source, Path) else "")
        try:
            if kind == "image":
                yield from inspect_image(source)
            elif kind == "audio" and frames:
                yield from inspect_sound(source, frames)
            elif not (isinstance(source, Path) and source.is_dir()):
                read_bytes(source)
        except BadMedia as error:
            raise BadMedia(f"{where}: {error}") from None
