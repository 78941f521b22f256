"""Rows of a batch with their pictures and the spectrograms of their sounds, as sections of a
page."""

import base64
from collections.abc import Iterable
from html import escape
from typing import Any

import numpy as np
from rich.text import Text

from research.data.media.png import png


def row_section(lines: Iterable[Text], row: dict[str, Any]) -> tuple[str, str]:
    """(heading, markup) of a row: its lines as `picture.describe` gives them, and its pictures and
    sounds as the encoders get them, the empty ones behind the last left out."""
    heading, *rest = [line.plain for line in lines]
    told = escape("\n".join(rest).rstrip())
    media = _pictures(row) + _spectrograms(row)
    return heading, f"<p>{media}</p><div class=sample><pre>{told}</pre></div>"


def _pictures(row: dict[str, Any]) -> str:
    images = _filled(row.get("images", np.zeros((0, 1, 1, 3), np.uint8)))
    return "".join(
        _shown(
            f"picture {number}",
            f"{pixels.shape[1]} x {pixels.shape[0]}",
            pixels,
            max(96, pixels.shape[1]),
        )
        for number, pixels in enumerate(images)
    )


def _spectrograms(row: dict[str, Any]) -> str:
    """Log-mel frames from left to right, low bands at the bottom, white for the loudest value of a
    sound."""
    shown = []
    for number, frames in enumerate(_filled(row.get("sounds", np.zeros((0, 1, 1))))):
        low, high = frames.min(), frames.max()
        grey = np.uint8(255 * (frames - low) / max(high - low, 1e-6)).T[::-1]
        told = f"{len(frames) / 100:g} s, {frames.shape[1]} bands"
        pixels = np.repeat(grey[:, :, None], 3, axis=2)
        shown.append(_shown(f"sound {number}", told, pixels, min(960, max(240, len(frames)))))
    return "".join(shown)


def _filled(media: Any) -> np.ndarray:
    """The media of a row without the empty ones behind the last."""
    media = np.asarray(media)
    filled = np.flatnonzero(media.any(axis=tuple(range(1, media.ndim))))
    return media[: int(filled[-1]) + 1] if len(filled) else media[:0]


def _shown(name: str, told: str, pixels: np.ndarray, width: int) -> str:
    return (
        f'<img alt="{name}" title="{name}, {told}" width="{width}" style="margin:4px" '
        f'src="data:image/png;base64,{base64.b64encode(png(pixels)).decode()}">'
    )
