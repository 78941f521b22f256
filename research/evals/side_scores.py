"""Scores of texts in batches: the reward of each, or how likely its answer is."""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from research.evals.evaluation import Opened
from research.evals.pair_records import Side
from research.objectives.next_token import batch_scores

_TOKENS = 2048  # of a batch
_MOST_ROWS = 16

Batch = dict[str, np.ndarray]


def rewards(opened: Opened, texts: Sequence[Sequence[int]]) -> np.ndarray:
    """The reward of each text of token ids, float32 [N]."""
    found = np.zeros(len(texts), np.float32)
    for rows, batch in _batches(texts):
        scored_B = np.asarray(_rewards(opened.params, batch, model=opened.model))
        found[rows] = scored_B[: len(rows)]
    return found


def answer_scores(opened: Opened, sides: Sequence[Side]) -> np.ndarray:
    """The log-probability of each answer in nats, summed over its tokens, float32 [N]."""
    found = np.zeros(len(sides), np.float32)
    for rows, batch in _batches([side.ids for side in sides]):
        # Each token is scored where the one before it is read.
        targets_BT, counted_BT = np.zeros_like(batch["inputs"]), np.zeros_like(batch["inputs"])
        for row, index in enumerate(rows):
            side = sides[index]
            targets_BT[row, : len(side.ids) - 1] = side.ids[1:]
            counted_BT[row, : len(side.ids) - 1] = side.said[1:]
        batch = {**batch, "targets": targets_BT, "weights": counted_BT.astype(np.float32)}
        scored_B = np.asarray(_answers(opened.params, batch, model=opened.model))
        found[rows] = scored_B[: len(rows)]
    return found


def _batches(texts: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Batch]]:
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
def _rewards(params, batch, *, model):
    hidden_BTD = model.hidden(params, batch)[0]
    return model.class_logits(params, hidden_BTD, segments_BT=batch["segments"])[:, 0, 0]


@partial(jax.jit, static_argnames="model")
def _answers(params, batch, *, model):
    logp_BT = batch_scores(model, params, batch)[0].logp
    return jnp.sum(jnp.where(batch["weights"] > 0, logp_BT, 0.0), axis=1)
