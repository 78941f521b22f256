"""Token ids as a caller gives them, checked and made an array."""

from typing import Any

import numpy as np

from research.models.config import ModelConfig


def checked_ids(c: ModelConfig, tokens_BT: Any, what: str) -> np.ndarray:
    """The ids int32 [B, T]. ValueError, which calls them `what`, for texts of unequal length, for
    anything but integers [B, T], for ids outside the vocabulary, and for more than the model has
    positions."""
    try:
        tokens_BT = np.asarray(tokens_BT)
    except ValueError:
        raise ValueError(
            f"{what} are texts of unequal length; pad them to one and give a mask"
        ) from None
    if tokens_BT.ndim != 2 or tokens_BT.dtype.kind not in "iu" or not tokens_BT.size:
        raise ValueError(
            f"{what} are {tokens_BT.dtype} of shape {tokens_BT.shape}; wanted integers [B, T]"
        )
    # The place of a soft token may lie outside the table.
    soft_BT = (tokens_BT == c.image.token) & c.image.in_texts
    soft_BT |= (tokens_BT == c.sound.token) & (c.sound.layers > 0)
    words = np.where(soft_BT, 0, tokens_BT)
    # A gather out of range gives no error under jit, but rows of the table's end.
    if words.min() < 0 or words.max() >= c.vocab_size:
        raise ValueError(
            f"{what} lie in {words.min()}..{words.max()}; the model's are 0..{c.vocab_size - 1}"
        )
    if c.position == "learned" and tokens_BT.shape[1] > c.max_length:
        raise ValueError(
            f"{what} are {tokens_BT.shape[1]} long, the model has {c.max_length} positions"
        )
    return tokens_BT.astype(np.int32)
