"""What the data must know of a model's encoders."""

import numpy as np

from research.data.media.soft_tokens import SoftTokens
from research.models.config import ModelConfig


def soft_tokens(c: ModelConfig) -> SoftTokens | None:
    """The model's encoder of images as the data see it, None without one."""
    if not c.image.layers:
        return None
    return SoftTokens(c.image.size, c.image.form, c.image.tokens, c.image.frames, c.image.token)


def media_window(c: ModelConfig, reads: str, length: int) -> dict[str, np.ndarray]:
    """The fields that a window of the layout `reads` has beside tokens, as zeros: what a batch is
    planned with. ValueError for a model without an encoder."""
    soft = soft_tokens(c)
    if soft is None:
        raise ValueError(
            f"the objective reads {reads} and the model has no encoder of images; set "
            "config.model.image"
        )
    images = soft.frames * (1 if reads == "captions" else soft.most_blocks(length))
    pixels = np.zeros((images, soft.size, soft.size, 3), np.uint8)
    return {"images": pixels, "whole": np.ones(1, np.int32)}
