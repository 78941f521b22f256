"""Pictures as arrays: decoded within limits by Pillow, the extra [media]."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.data.media.limits import LIMITS, BadMedia, Limits, read_bytes

# Pillow knows some forty formats, one of which (EPS) runs another program. These are pictures as
# data sets have them.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")


class Picture(NamedTuple):
    """A decoded picture.

    pixels  uint8 [height, width, 3], red, green and blue
    notes   what was done to it beyond decoding, such as "transparent, laid on white"
    """

    pixels: np.ndarray
    notes: tuple[str, ...]


def inspect_image(source: bytes | Path, limits: Limits = LIMITS) -> tuple[str, ...]:
    """The notes of a picture by its header, without decoding it. BadMedia for one that cannot be
    read or is over a limit."""
    return _notes(_opened(source, limits))


def read_image(source: bytes | Path, limits: Limits = LIMITS) -> Picture:
    """The picture in a file or in bytes.

    It is turned as its EXIF tag says. Of an animation the first frame is taken; transparency is
    laid on white; CMYK, grey and 16-bit pictures become 8-bit RGB. Each is a note. BadMedia for a
    picture that is empty, broken, cut off, of another format or over a limit.
    """
    opened = _opened(source, limits)
    notes = _notes(opened)
    from PIL import ImageOps

    try:
        # A lazy file is decoded here. Pillow's decoders raise what they like for broken data.
        opened.load()
        rgb = _rgb(ImageOps.exif_transpose(opened))
    except Exception as error:
        raise BadMedia(f"its pixels cannot be read: {_reason(error)}") from None
    return Picture(np.asarray(rgb, np.uint8), notes)


def pillow() -> Any:
    """Pillow's module Image. ValueError without the extra."""
    try:
        from PIL import Image
    except ImportError:
        raise ValueError(
            "pictures are decoded by Pillow, which is not installed; pip install "
            "'graft-research[media]'"
        ) from None
    return Image


def _opened(source: bytes | Path, limits: Limits) -> Any:
    """The picture with its header read and nothing decoded."""
    data, image = read_bytes(source, limits), pillow()
    try:
        opened = image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:
        raise BadMedia(f"it is no picture that can be read: {_reason(error)}") from None
    width, height = opened.size
    if width * height > limits.pixels:
        raise BadMedia(
            f"it would have {width} x {height} pixels, over the {limits.pixels:,} that are decoded"
        )
    return opened


def _notes(opened: Any) -> tuple[str, ...]:
    notes = []
    if getattr(opened, "is_animated", False):
        notes.append("animated, of which the first frame is taken")
    if opened.mode == "CMYK":
        notes.append("CMYK, converted to RGB")
    if opened.mode.startswith(("I", "F")):
        notes.append("of more than 8 bits a channel, scaled to 8")
    if _transparent(opened):
        notes.append("transparent, laid on white")
    return tuple(notes)


def _transparent(opened: Any) -> bool:
    return opened.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in opened.info


def _rgb(opened: Any) -> Any:
    if opened.mode.startswith(("I", "F")):
        return pillow().fromarray(_eight_bits(np.asarray(opened))).convert("RGB")
    if not _transparent(opened):
        return opened.convert("RGB")
    # Pixels under full transparency have any colour; without a ground they would show.
    layer = opened.convert("RGBA")
    ground = pillow().new("RGBA", layer.size, (255, 255, 255, 255))
    ground.alpha_composite(layer)
    return ground.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """uint8 of wider numbers: 16-bit integers by their range, floats in [0, 1] by theirs."""
    if values.dtype.kind == "f":
        scaled = np.nan_to_num(values) * 255.0
    else:
        scaled = values.astype(np.float64) / 257.0  # 65535 becomes 255
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _reason(error: Exception) -> str:
    """An error of Pillow in one line, without the addresses of objects in it."""
    text = str(error).split(" <", 1)[0].strip() or type(error).__name__
    return " ".join(text.split())[:120]
