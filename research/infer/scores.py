"""The scores that a reward model gives to texts."""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np

from research.models.model import Model
from research.tree import Tree

_ROWS = 16  # of a batch


def score_texts(model: Model, params: Tree, texts: Sequence[Sequence[int]]) -> np.ndarray:
    """The score of each text of token ids, read at its last token, float32 [N]. The model has
    `scores_texts`."""
    scores = np.zeros(len(texts), np.float32)
    # Texts of one length together, and lengths that are powers of 2: few programs, little padding.
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for start in range(0, len(order), _ROWS):
        chosen = order[start : start + _ROWS]
        length = 1 << max(5, (len(texts[chosen[-1]]) - 1).bit_length())
        tokens_BT, kept_BT = np.zeros((2, _ROWS, length), np.int32)
        for row, index in enumerate(chosen):
            tokens_BT[row, : len(texts[index])] = texts[index]
            kept_BT[row, : len(texts[index])] = 1
        positions_BT = np.broadcast_to(np.arange(length, dtype=np.int32), tokens_BT.shape)
        batch = {"inputs": tokens_BT, "segments": kept_BT, "positions": positions_BT}
        scores[chosen] = np.asarray(_scores(params, batch, model=model))[: len(chosen)]
    return scores


@partial(jax.jit, static_argnames="model")
def _scores(params, batch, *, model):
    hidden_BTD = model.hidden(params, batch)[0]
    return model.class_logits(params, hidden_BTD, segments_BT=batch["segments"])[:, 0, 0]
