"""Kinds of media, told by the suffix of a file: what it says inside is checked when it is read."""

from pathlib import Path
from typing import NamedTuple

KINDS: dict[str, frozenset[str]] = {
    "image": frozenset((".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff")),
    "audio": frozenset((".wav", ".flac", ".mp3", ".ogg", ".m4a")),
    "video": frozenset((".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")),
}


def kind_of(suffix: str) -> str:
    """ "image", "audio" or "video", "" for any other suffix.

    >>> kind_of(".PNG"), kind_of(".npy")
    ('image', '')
    """
    return next((kind for kind, suffixes in KINDS.items() if suffix.lower() in suffixes), "")


class Medium(NamedTuple):
    """A medium of a record: its kind, a key of `KINDS`, and where it is, bytes or a path."""

    kind: str
    source: bytes | Path
