"""A hash of the contents of files, kept until one of them changes."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from research.data.documents import digest
from research.downloads.cache import remembered

_WHOLE_BYTES, _SAMPLE_BYTES, _SAMPLES = 64 * 1024 * 1024, 64 * 1024, 16
_SETTLED_SECONDS = 2.0  # no file system in use has coarser time stamps than FAT's two seconds


def content_digest(files: list[tuple[str, str]], cache_dir: Path, sampled: bool = False) -> str:
    """A sha256 of the names and contents of `files`, (path, name) pairs.

    `sampled` is for data too large to be read whole: of a file over 64 MiB only its size and 16
    blocks of 64 KiB, evenly spread from start to end, are hashed. A change elsewhere is not seen.

    The result is cached until the size, a time stamp or the inode of a file changes. One of the
    time stamps is the change time (ctime). Programs cannot set it, unlike the modification time,
    so an edit is seen even if size and modification time are restored afterwards.
    """
    stats = [os.stat(path) for path, _ in files]
    key = json.dumps(
        [sampled]
        + [
            (path, name, one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino)
            for (path, name), one in zip(files, stats)
        ]
    )

    def _read_all() -> str:
        parts = []
        for path, name in files:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if sampled and size > _WHOLE_BYTES:
                    parts += [name, digest(str(size), *_samples(file, size))]
                else:
                    parts += [name, hashlib.file_digest(file, "sha256").hexdigest()]
        return digest(*parts)

    # Another edit within the same tick of the clock would leave the same time stamps, so a file
    # that has just been changed is read again the next time.
    if max(one.st_ctime for one in stats) > time.time() - _SETTLED_SECONDS:
        return _read_all()
    return remembered(cache_dir / "digests" / f"{digest(key)}.json", _read_all)


def _samples(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Blocks of a file at equal distances, the first at its start and the last at its end."""
    for block in range(_SAMPLES):
        file.seek((size - _SAMPLE_BYTES) * block // (_SAMPLES - 1))
        yield file.read(_SAMPLE_BYTES)
