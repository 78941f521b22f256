"""Videos as a few frames at equal distances: a folder of pictures, an animation, or a file that
PyAV decodes, the extra [media]."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from research.data.media.images import read_image
from research.data.media.kinds import KINDS
from research.data.media.limits import LIMITS, BadMedia, Limits, read_bytes


def read_video(
    source: bytes | Path, frames: int, limits: Limits = LIMITS
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """(`frames` pictures uint8 [height, width, 3] at equal distances in order, notes).

    Of a shorter video the last frame is repeated, which is a note. A folder holds its frames in the
    order of their names. A file that is cut off gives the frames before the cut, which is a note;
    BadMedia for one without a frame and for one over a limit.
    """
    if frames < 1:
        raise ValueError(f"frames={frames} must be positive")
    if isinstance(source, Path) and source.is_dir():
        return _folder(source, frames, limits)
    return _file(read_bytes(source, limits), frames, limits)


def chosen_frames(count: int, wanted: int) -> list[int]:
    """The indices of `wanted` frames of `count`, the first and the last among them.

    >>> chosen_frames(9, 3), chosen_frames(2, 4), chosen_frames(9, 1)
    ([0, 4, 8], [0, 1, 1, 1], [4])
    """
    if count <= wanted:
        return [min(at, count - 1) for at in range(wanted)]
    if wanted == 1:
        return [count // 2]
    return [at * (count - 1) // (wanted - 1) for at in range(wanted)]


def _folder(folder: Path, frames: int, limits: Limits) -> tuple[list[np.ndarray], tuple[str, ...]]:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in KINDS["image"])
    if not files:
        raise BadMedia("it is a folder without pictures")
    if len(files) > limits.frames:
        raise BadMedia(f"it has {len(files)} frames, over the {limits.frames} that are read")
    kept: dict[int, np.ndarray] = {}
    chosen = chosen_frames(len(files), frames)
    for at in chosen:
        if at not in kept:
            try:
                kept[at] = read_image(files[at], limits).pixels
            except BadMedia as error:
                raise BadMedia(f"frame {files[at].name}: {error}") from None
    return [kept[at] for at in chosen], _short(len(files), frames)


def _file(data: bytes, frames: int, limits: Limits) -> tuple[list[np.ndarray], tuple[str, ...]]:
    count, broken = _count(data, limits)
    chosen = chosen_frames(count, frames)
    wanted, kept = set(chosen), {}
    for at, (frame, _) in enumerate(_decoded(data, limits)):
        # Frames of no use are decoded, since each builds on the one before, but not converted.
        if at in wanted:
            kept[at] = frame.to_ndarray(format="rgb24")
        if at >= chosen[-1]:
            break
    notes = _short(count, frames)
    return [kept[at] for at in chosen], (*notes, *((broken,) if broken else ()))


def _count(data: bytes, limits: Limits) -> tuple[int, str]:
    """(frames that can be decoded, a note if the file ends before its last one)."""
    count, broken, declared = 0, "", 0
    try:
        for _, said in _decoded(data, limits):
            count, declared = count + 1, said
            if count > limits.frames:
                raise BadMedia(f"it has more than the {limits.frames} frames that are decoded")
    except _Broken:
        broken = _CUT
    # Containers without an index, as AVI's, simply end.
    if count < declared:
        broken = _CUT
    if not count:
        raise BadMedia("no frame of it can be decoded")
    return count, broken


_CUT = "cut off or damaged, read up to there"


class _Broken(Exception):
    """The decoder stopped within a file."""


def _decoded(data: bytes, limits: Limits) -> Iterator[tuple[Any, int]]:
    """(each frame of a file as PyAV's object, the number of them that the file declares)."""
    try:
        import av
    except ImportError:
        raise ValueError(
            "videos are decoded by PyAV, which is not installed; pip install "
            "'graft-research[media]', or give a folder of frames"
        ) from None
    try:
        with av.open(io.BytesIO(data)) as container:
            if not container.streams.video:
                raise BadMedia("it has no picture, only sound")
            stream = container.streams.video[0]
            if stream.width * stream.height > limits.pixels:
                raise BadMedia(
                    f"its frames have {stream.width} x {stream.height} pixels, over the "
                    f"{limits.pixels:,} that are decoded"
                )
            # The number that the container declares, 0 where it does not say.
            yield from ((frame, stream.frames) for frame in container.decode(stream))
    except av.FFmpegError:
        raise _Broken from None


def _short(count: int, wanted: int) -> tuple[str, ...]:
    return (f"shorter than {wanted} frames, its last one is repeated",) if count < wanted else ()
