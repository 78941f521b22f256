"""The loss over counted tokens that all token-predicting objectives share."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp

from research.models.config import LayerLosses, ModelConfig, layer_loss_weights
from research.models.model import Model
from research.models.soft import on_words
from research.objectives.objective import Totals
from research.objectives.predicted import Bound, Tokens, part_predicted
from research.ops.frozen_head import frozen_head_loss
from research.ops.loss import cross_entropy
from research.ops.plain_head import head_loss
from research.ops.token_chunks import CHUNK
from research.parallel.placement import local_shape, split_axis
from research.tree import Tree
from research.weights.rules import attach, redraw_dropout


def token_loss(
    model: Model,
    trainable: Tree,
    held: Mapping[str, Tree],
    batch: dict[str, jax.Array],
    key: jax.Array | None,
    label_smoothing: float,
    z_loss: float,
    bound: Bound | None = None,
) -> tuple[jax.Array, jax.Array, Totals]:
    """(sum of the loss in nats over the targets of weight 1, their number, totals).

    The totals have "nll", the negative log-likelihood without label smoothing and z-loss, and the
    layer losses of the model, such as the balance of experts. With a `bound` on the targets of
    weight 1 in a row the head runs over so many tokens. A batch in which some row has more takes
    a second pass over the rest; under a hard bound its loss is NaN.
    """
    # The frozen tree and the trained one become one tree of leaves; gradients reach only what was
    # traced as `trainable`, and nothing is copied.
    params, batch = attach(held["base"], trainable, key), on_words(model.config, batch)
    hidden_BTD, layer_losses = model.hidden(params, batch, key)
    count = jnp.sum(batch["weights"])
    head = partial(_head_loss, model, params, label_smoothing=label_smoothing, z_loss=z_loss)
    tokens = hidden_BTD, batch["targets"], batch["weights"]
    first, rest = (tokens, None) if bound is None else part_predicted(tokens, bound.tokens)
    total, nll = head(first)
    if bound is not None and rest is not None:
        more = jnp.any(rest[2] > 0)
        if bound.hard:
            # Whoever made such a batch must not train on a part of it.
            total = jnp.where(more, jnp.nan, total)
        else:
            others = jax.lax.cond(more, head, lambda _: (jnp.float32(0), jnp.float32(0)), rest)
            total, nll = total + others[0], nll + others[1]
    # "nll" stays free of every regulariser, so runs with different ones can be compared by it.
    total, totals = with_layer_losses(model.config, layer_losses, total, count)
    return total, count, {"nll": (nll, count), **totals}


def _head_loss(
    model: Model, params: Tree, tokens: Tokens, *, label_smoothing: float, z_loss: float
) -> tuple[jax.Array, jax.Array]:
    """(sum of the loss, sum of the nll) over tokens by their weights."""
    hidden_BTD, targets_BT, weights_BT = tokens
    states_BTD, table_VD, bias_V = model.head(params, hidden_BTD)
    # Logits [B, T, V] are the largest array of a step. The heads below never hold all of them;
    # they need a plain or frozen table without a bias.
    if bias_V is None and (isinstance(table_VD, jax.Array) or table_VD.frozen):
        head = head_loss if isinstance(table_VD, jax.Array) else frozen_head_loss
        settings = label_smoothing, z_loss, model.config.logit_softcap, model.execution.head_tokens
        return head(states_BTD, table_VD, targets_BT, weights_BT, *settings)
    return _logits_loss(model, params, tokens, label_smoothing, z_loss)


def with_layer_losses(
    c: ModelConfig, losses: LayerLosses, total: jax.Array, count: jax.Array
) -> tuple[jax.Array, Totals]:
    """Adds the weighted losses of the layers to `total`, a sum over `count` targets.

    Returns (new total, {name: (layer loss * count, count)}), the latter without their weights.
    """
    # A layer loss is a mean over the batch. Times the count it has the same weight for each target
    # after the caller has divided by the count.
    for name, weight in layer_loss_weights(c).items():
        total += weight * losses[name] * count
    return total, {name: (value * count, count) for name, value in losses.items()}


def _logits_loss(model, params, tokens, label_smoothing, z_loss) -> tuple[jax.Array, jax.Array]:
    """(loss, nll) of heads with a bias or an adapter: the logits of some tokens at a time, computed
    again for the gradient."""

    # Only the hidden states are kept for the backward pass, and no [tokens, V] of any piece.
    @jax.checkpoint
    def _part(sums, tokens, number=None):
        hidden_BTD, targets_BT, weights_BT = tokens
        # A head's adapter would drop the same inputs in every piece.
        own = params if number is None else redraw_dropout(params, number)
        logits_BTV = model.logits(own, hidden_BTD)
        loss_BT, nll_BT = cross_entropy(
            logits_BTV, targets_BT, label_smoothing=label_smoothing, z_loss=z_loss
        )
        return (
            sums[0] + jnp.sum(loss_BT * weights_BT),
            sums[1] + jnp.sum(nll_BT * weights_BT),
        ), None

    start = jnp.float32(0), jnp.float32(0)
    # Sizes of a device's part: that is what its memory has to hold.
    B, T, _ = local_shape(tokens[0])
    most = model.execution.head_tokens or CHUNK
    # A length that is split over devices stays whole: pieces of it would be on some devices only.
    if B * T <= most or T != tokens[0].shape[1]:
        return _part(start, tokens)[0]
    # The fewest pieces of equal length that have at most so many tokens each.
    count = next(n for n in range(1, T + 1) if T % n == 0 and (B * T // n <= most or n == T))
    pieces = tuple(jnp.moveaxis(split_axis(x, 1, count), 1, 0) for x in tokens)
    return jax.lax.scan(
        lambda sums, numbered: _part(sums, numbered[1], numbered[0]),
        start,
        (jnp.arange(count), pieces),
    )[0]
