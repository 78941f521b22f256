"""Pictures in the size that an encoder was trained on."""

import numpy as np

from research.data.media.images import pillow

# What becomes of a picture that is no square, by the form of the encoder: SigLIP stretches both
# sides (arXiv:2303.15343), CLIP and DINOv2 take the middle of the picture whose shorter side has
# the size (arXiv:2103.00020, arXiv:2304.07193).
STRETCHED = frozenset(("siglip",))


def resized(pixels: np.ndarray, size: int, form: str = "siglip") -> np.ndarray:
    """uint8 [size, size, 3] of a picture uint8 [height, width, 3].

    The filter is Pillow's bicubic, as in these encoders' image processors: `jax.image.resize`
    gives other values.
    """
    image = pillow()
    height, width = pixels.shape[:2]
    wide, high = size, size
    if form not in STRETCHED:
        # The longer side as transformers computes it, which cuts the fraction off.
        wide, high = (side * size // min(width, height) for side in (width, height))
    if (wide, high) != (width, height):
        picture = image.fromarray(pixels).resize((wide, high), image.Resampling.BICUBIC)
        pixels = np.asarray(picture, np.uint8)
    top, left = (high - size) // 2, (wide - size) // 2
    return pixels[top : top + size, left : left + size]
