"""Arrays as pictures in SVG text, for a report or a notebook: pictures with their names, and the
spectrogram of a sound. No script; text and axes take the page's own colour."""

import base64
from collections.abc import Sequence
from html import escape
from itertools import zip_longest

import numpy as np

from research.data.media.mel import HOP, mel_centres
from research.data.media.png import png
from research.data.media.sound import RATE
from research.training.curves import linear_ticks, tick_text
from research.training.plot import BOTTOM, LEFT, RIGHT, STYLE, TOP

# From quiet to loud, red, green and blue at equal distances: brightness grows all the way, so that
# it can be read in grey.
_RAMP = np.array([(12, 8, 38), (74, 24, 110), (176, 50, 94), (240, 128, 40), (252, 246, 190)])
_HERTZ = (100, 500, 1000, 2000, 4000, 7000)  # labels of the mel axis, far enough apart
_CELL, _NAME, _GAP = 96, 18, 10  # pixels of a picture's side, of its name, between pictures
_LETTERS = 15  # of a name that fit under a picture


def pictures_svg(
    pictures: Sequence[np.ndarray], names: Sequence[str] = (), columns: int = 6
) -> str:
    """An `<svg>` of pictures uint8 [height, width, 3] in rows, each with its name below; a name
    that is too long ends in an ellipsis and is whole under the mouse.

    `IPython.display.SVG(pictures_svg([pixels], ["a cat"]))` shows one. ValueError for no pictures,
    and for more names than pictures.
    """
    if not pictures or len(names) > len(pictures):
        raise ValueError(
            f"{len(pictures)} pictures and {len(names)} names; give at least one picture, and at "
            "most a name for each"
        )
    across = min(columns, len(pictures))
    down = -(-len(pictures) // across)
    width, height = across * (_CELL + _GAP), down * (_CELL + _NAME + _GAP)
    shapes = [_head(width, height, "pictures with their names")]
    for place, (pixels, name) in enumerate(zip_longest(pictures, names, fillvalue="")):
        x, y = place % across * (_CELL + _GAP), place // across * (_CELL + _NAME + _GAP)
        shapes.append(f"<g><title>{escape(name)}</title>{_image(pixels, x, y, _CELL, _CELL)}")
        cut = name if len(name) <= _LETTERS else name[: _LETTERS - 1] + "…"
        at = f'x="{x + _CELL / 2}" y="{y + _CELL + 14}" text-anchor="middle"'
        shapes.append(f'<text class="soft" {at}>{escape(cut)}</text></g>')
    return "".join([*shapes, "</svg>"])


def spectrogram_svg(log_mel: np.ndarray, width: int = 720, height: int = 220) -> str:
    """An `<svg>` of a log-mel spectrogram [mels, frames] as `research.data.media.mel.log_mel` gives
    it: seconds to the right, frequency in Hz upwards on the mel scale, the loudest brightest.

    ValueError for anything but two dimensions with values.
    """
    log_mel = np.asarray(log_mel)
    if log_mel.ndim != 2 or not log_mel.size:
        raise ValueError(f"a spectrogram has [mels, frames], got the shape {log_mel.shape}")
    mels, frames = log_mel.shape
    right, floor = width - LEFT - RIGHT, height - TOP - BOTTOM
    shapes = [_head(width, height, "spectrogram: seconds and Hz")]
    # Low frequencies are the first rows of the array and stand at the bottom of the picture.
    shapes.append(_image(_coloured(log_mel)[::-1], LEFT, TOP, right, floor))
    rows = np.interp(_HERTZ, mel_centres(mels), np.arange(mels))
    for hertz, row in zip(_HERTZ, rows):
        y = TOP + floor * (1 - (row + 0.5) / mels)
        place = f'x="{LEFT - 7}" y="{y:.1f}" dy=".35em" text-anchor="end"'
        shapes.append(f'<text class="soft" {place}>{hertz:,}</text>')
    seconds = frames * HOP / RATE
    for tick in linear_ticks(0.0, seconds):
        place = f'x="{LEFT + right * tick / seconds:.1f}" y="{height - BOTTOM + 18}"'
        words = f"{tick_text(tick)} s"
        shapes.append(f'<text class="soft" {place} text-anchor="middle">{words}</text>')
    return "".join([*shapes, "</svg>"])


def _coloured(values: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] of numbers, the least and the greatest at the ends of the ramp."""
    low, high = float(values.min()), float(values.max())
    shares = (values - low) / ((high - low) or 1.0)
    stops = np.linspace(0, 1, len(_RAMP))
    return np.stack([np.interp(shares, stops, _RAMP[:, c]) for c in range(3)], -1).astype(np.uint8)


def _image(pixels: np.ndarray, x: float, y: float, width: float, height: float) -> str:
    data = base64.b64encode(png(np.ascontiguousarray(pixels))).decode()
    place = f'x="{x}" y="{y}" width="{width}" height="{height}"'
    # A spectrogram fills its axes; pictures are square already or are shown whole.
    fit = "none" if width != height else "xMidYMid"
    return f'<image {place} preserveAspectRatio="{fit}" href="data:image/png;base64,{data}"/>'


def _head(width: float, height: float, title: str) -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    look = f'class="graft-plot" role="img" aria-label="{title}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {look} {size}>{STYLE}'
