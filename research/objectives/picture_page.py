"""Rows of a batch with their pictures, as sections of a page."""

import base64
from collections.abc import Iterable
from html import escape
from typing import Any

import numpy as np
from rich.text import Text

from research.data.media.png import png


def row_section(lines: Iterable[Text], row: dict[str, Any]) -> tuple[str, str]:
    """(heading, markup) of a row: its lines as `picture.describe` gives them, and its pictures as
    the encoder gets them, the black ones behind the last left out."""
    heading, *rest = [line.plain for line in lines]
    told = escape("\n".join(rest).rstrip())
    return heading, f"<p>{_pictures(row)}</p><div class=sample><pre>{told}</pre></div>"


def _pictures(row: dict[str, Any]) -> str:
    images = np.asarray(row.get("images", np.zeros((0, 1, 1, 3), np.uint8)))
    filled = np.flatnonzero(images.any(axis=(1, 2, 3)))
    shown = images[: int(filled[-1]) + 1] if len(filled) else images[:0]
    return "".join(
        f'<img alt="picture {number}" title="picture {number}, {pixels.shape[1]} x '
        f'{pixels.shape[0]}" width="{max(96, pixels.shape[1])}" style="margin:4px" '
        f'src="data:image/png;base64,{base64.b64encode(png(pixels)).decode()}">'
        for number, pixels in enumerate(shown)
    )
