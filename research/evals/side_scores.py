"""Scores of texts in batches: the reward of each, or how likely its answer is."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from research.evals.evaluation import Opened
from research.evals.pair_records import Side
from research.infer.scores import score_texts, text_rows
from research.objectives.next_token import batch_scores


def rewards(opened: Opened, texts: Sequence[Sequence[int]]) -> np.ndarray:
    """The reward of each text of token ids, float32 [N]."""
    return score_texts(opened.model, opened.params, texts)


def answer_scores(opened: Opened, sides: Sequence[Side]) -> np.ndarray:
    """The log-probability of each answer in nats, summed over its tokens, float32 [N]."""
    found = np.zeros(len(sides), np.float32)
    for rows, batch in text_rows([side.ids for side in sides]):
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


@partial(jax.jit, static_argnames="model")
def _answers(params, batch, *, model):
    logp_BT = batch_scores(model, params, batch)[0].logp
    return jnp.sum(jnp.where(batch["weights"] > 0, logp_BT, 0.0), axis=1)
