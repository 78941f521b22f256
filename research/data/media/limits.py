"""The most that is read of one picture, sound or video: nothing is decoded without a bound."""

from dataclasses import dataclass
from pathlib import Path


class BadMedia(ValueError):
    """A picture, sound or video that cannot be read, or is over a limit."""


@dataclass(frozen=True)
class Limits:
    """Bounds on what one medium may take.

    file_bytes  of a file or of the bytes in a record, before they are decoded
    pixels      of a picture, by its header, before it is decoded: 200 MB of memory
    frames      of a video that are decoded to find those that are kept: ten minutes at 30 a second
    seconds     of a sound: three hours, 690 MB of samples at 16 kHz
    members     files of one folder of frames or of one shard
    """

    file_bytes: int = 256 * 1024 * 1024
    pixels: int = 64 * 1024 * 1024
    frames: int = 18_000
    seconds: int = 10_800
    members: int = 1_000_000


LIMITS = Limits()


def read_bytes(source: bytes | Path, limits: Limits = LIMITS) -> bytes:
    """The content of a file, or the bytes themselves. BadMedia for what is missing, empty or over
    the limit, which is found before anything is read."""
    if isinstance(source, bytes):
        size = len(source)
    else:
        try:
            # A device or a pipe has no end.
            if not source.is_file():
                raise BadMedia("it is no file" if source.exists() else "there is no such file")
            size = source.stat().st_size
        except OSError as error:
            raise BadMedia(f"it cannot be read: {error.strerror}") from None
    if not size:
        raise BadMedia("it is empty")
    if size > limits.file_bytes:
        raise BadMedia(f"it has {size:,} bytes, over the {limits.file_bytes:,} that are read")
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except OSError as error:
        raise BadMedia(f"it cannot be read: {error.strerror}") from None
