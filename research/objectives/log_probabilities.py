"""Log-probabilities of each token under a model, for losses that are functions of them.

Letters: B batch, T time, V vocabulary, n pieces.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.models.model import Model
from research.ops.loss import cross_entropy
from research.ops.token_chunks import CHUNK
from research.parallel.placement import local_shape, merge_axes, split_axis
from research.tree import Tree
from research.weights.rules import redraw_dropout


class TokenScores(NamedTuple):
    """Float32 [B, T] in nats: the log-probability of each target, and the entropy of the
    distribution that it stands in, which has no gradient."""

    logp: jax.Array
    entropy: jax.Array


def token_scores(
    model: Model,
    params: Tree,
    hidden_BTD: jax.Array,
    targets_BT: jax.Array,
    temperature: float = 1.0,
) -> TokenScores:
    """The scores of the targets in softmax(logits / temperature), given the last states of
    `Model.hidden`. Logits exist for some tokens at a time, and are computed again for the
    gradient."""

    # Only hidden states are kept for the backward pass, and no [tokens, V] of any piece.
    @jax.checkpoint
    def _piece(hidden_BTD, targets_BT, number=None):
        own = params if number is None else redraw_dropout(params, number)
        logits_BTV = model.logits(own, hidden_BTD)
        if temperature != 1:
            logits_BTV = logits_BTV / temperature
        _, nll_BT = cross_entropy(logits_BTV, targets_BT)
        fixed_BTV = jax.nn.log_softmax(jax.lax.stop_gradient(logits_BTV), axis=-1)
        return TokenScores(-nll_BT, -jnp.sum(jnp.exp(fixed_BTV) * fixed_BTV, axis=-1))

    B, T, _ = local_shape(hidden_BTD)
    most = model.execution.head_tokens or CHUNK
    # A length that is split over devices stays whole: pieces of it would be on some devices only.
    if B * T <= most or T != hidden_BTD.shape[1]:
        return _piece(hidden_BTD, targets_BT)
    # The fewest pieces of equal length that have at most so many tokens each.
    count = next(n for n in range(1, T + 1) if T % n == 0 and (B * T // n <= most or n == T))
    pieces = tuple(jnp.moveaxis(split_axis(x, 1, count), 1, 0) for x in (hidden_BTD, targets_BT))
    scores_nBT = jax.lax.map(lambda piece: _piece(*piece[1], piece[0]), (jnp.arange(count), pieces))
    return TokenScores(*(merge_axes(jnp.moveaxis(x, 0, 1), 1) for x in scores_nBT))
