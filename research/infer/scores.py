"""Scores of texts: what a reward model gives to each, in batches of texts of like length."""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import numpy as np

from research.models.model import Model
from research.tree import Tree

_TOKENS = 2048  # of a batch
_MOST_ROWS = 16

Batch = dict[str, np.ndarray]


def score_texts(model: Model, params: Tree, texts: Sequence[Sequence[int]]) -> np.ndarray:
    """The score of each text of token ids, read at its last token, float32 [N]. The model has
    `scores_texts`."""
    scores = np.zeros(len(texts), np.float32)
    for rows, batch in text_rows(texts):
        scores[rows] = np.asarray(_scores(params, batch, model=model))[: len(rows)]
    return scores


def text_rows(texts: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Batch]]:
    """(numbers of some texts, their batch, which may have empty rows behind them)."""
    # Texts of one length together, and lengths that are powers of 2: few programs, little padding.
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    while order:
        length = 1 << max(5, (len(texts[order[-1]]) - 1).bit_length())
        most = min(_MOST_ROWS, max(1, _TOKENS // length))
        rows, order = order[-most:], order[:-most]
        tokens_BT, kept_BT = np.zeros((2, most, length), np.int32)
        for row, index in enumerate(rows):
            tokens_BT[row, : len(texts[index])] = texts[index]
            kept_BT[row, : len(texts[index])] = 1
        positions_BT = np.broadcast_to(np.arange(length, dtype=np.int32), tokens_BT.shape)
        yield rows, {"inputs": tokens_BT, "segments": kept_BT, "positions": positions_BT}


@partial(jax.jit, static_argnames="model")
def _scores(params, batch, *, model):
    hidden_BTD = model.hidden(params, batch)[0]
    return model.class_logits(params, hidden_BTD, segments_BT=batch["segments"])[:, 0, 0]
