"""Drafts from the text itself: a text that quotes itself goes on as it did before.

Prompt lookup decoding: github.com/apoorvumang/prompt-lookup-decoding. A draft is a guess without a
model, so it costs nothing but the room that it takes in a step.
"""

from collections.abc import Sequence

import numpy as np

LONGEST, SHORTEST = 3, 2  # tokens that must have been there before; one is there by chance


def lookup(ids: Sequence[int], most: int) -> list[int]:
    """Up to `most` tokens that followed where the text's last tokens were last seen; [] where they
    are new."""
    text_S = np.asarray(ids, np.int32)
    for size in range(LONGEST, SHORTEST - 1, -1):
        if most < 1 or len(text_S) <= size:
            continue
        # Of the windows but the last, which is what is looked for.
        windows_Wn = np.lib.stride_tricks.sliding_window_view(text_S[:-1], size)
        found = np.flatnonzero((windows_Wn == text_S[-size:]).all(axis=1))
        if len(found):
            start = int(found[-1]) + size
            # What lies between is repeated where it is shorter than what is wanted.
            return np.resize(text_S[start:], most).tolist()
    return []
