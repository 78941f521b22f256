"""The loss over counted tokens that all token-predicting objectives share."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from research.models.config import LayerLosses, ModelConfig, layer_loss_weights
from research.models.model import Model
from research.objectives.objective import Totals
from research.ops.frozen_head import frozen_head_loss
from research.ops.loss import CHUNK, cross_entropy, head_loss
from research.parallel.placement import local_shape, split_axis
from research.tree import Tree
from research.weights.rules import attach


def token_loss(
    model: Model,
    trainable: Tree,
    held: Mapping[str, Tree],
    batch: dict[str, jax.Array],
    key: jax.Array | None,
    label_smoothing: float,
    z_loss: float,
) -> tuple[jax.Array, jax.Array, Totals]:
    """Sum of the loss over tokens of weight 1, their count, and the pair of the plain negative
    log-likelihood."""
    params = attach(held["base"], trainable, key)
    hidden_BTD, layer_losses = model.hidden(params, batch, key)
    states_BTD, table_VD, bias_V = model.head(params, hidden_BTD)
    count = jnp.sum(batch["weights"])
    if bias_V is None and (isinstance(table_VD, jax.Array) or table_VD.frozen):
        head = head_loss if isinstance(table_VD, jax.Array) else frozen_head_loss
        total, nll = head(
            states_BTD,
            table_VD,
            batch["targets"],
            batch["weights"],
            label_smoothing,
            z_loss,
            model.config.logit_softcap,
        )
    else:
        total, nll = _logits_loss(model, params, hidden_BTD, batch, label_smoothing, z_loss)
    total, totals = with_layer_losses(model.config, layer_losses, total, count)
    return total, count, {"nll": (nll, count), **totals}


def with_layer_losses(
    c: ModelConfig, losses: LayerLosses, total: jax.Array, count: jax.Array
) -> tuple[jax.Array, Totals]:
    """(`total`, a sum over `count` targets, with the layers' weighted losses added for each target;
    the pair of each layer loss by name, without its weight)."""
    for name, weight in layer_loss_weights(c).items():
        total += weight * losses[name] * count
    return total, {name: (value * count, count) for name, value in losses.items()}


def _logits_loss(
    model, params, hidden_BTD, batch, label_smoothing, z_loss
) -> tuple[jax.Array, jax.Array]:
    """(loss, nll) of heads with a bias or an adapter: the logits of some tokens at a time, computed
    again for the gradient."""

    @jax.checkpoint
    def part(sums, tokens):
        hidden_BTD, targets_BT, weights_BT = tokens
        logits_BTV = model.logits(params, hidden_BTD)
        loss_BT, nll_BT = cross_entropy(
            logits_BTV, targets_BT, label_smoothing=label_smoothing, z_loss=z_loss
        )
        return (
            sums[0] + jnp.sum(loss_BT * weights_BT),
            sums[1] + jnp.sum(nll_BT * weights_BT),
        ), None

    tokens, start = (
        (hidden_BTD, batch["targets"], batch["weights"]),
        (jnp.float32(0), jnp.float32(0)),
    )
    B, T, _ = local_shape(hidden_BTD)
    if (
        B * T <= CHUNK or T != hidden_BTD.shape[1]
    ):  # a length that is split over devices stays whole
        return part(start, tokens)[0]
    count = next(n for n in range(1, T + 1) if T % n == 0 and (B * T // n <= CHUNK or n == T))
    return jax.lax.scan(
        part, start, tuple(jnp.moveaxis(split_axis(x, 1, count), 1, 0) for x in tokens)
    )[0]
