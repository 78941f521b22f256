"""The loss over counted tokens that all token-predicting objectives share."""

import jax
import jax.numpy as jnp

from research import tree
from research.models.model import Model
from research.ops.loss import cross_entropy

Totals = dict[str, tuple[jax.Array, jax.Array]]


def token_loss(
    model: Model,
    trainable: tree.Tree,
    frozen: tree.Tree,
    batch: dict[str, jax.Array],
    key: jax.Array | None,
    label_smoothing: float,
    z_loss: float,
) -> tuple[jax.Array, jax.Array, Totals]:
    """Sum of the loss over tokens of weight 1, their count, and the pair of the plain negative log-likelihood."""
    params = tree.join(trainable, frozen)
    hidden_BTD, balance = model.hidden(params, batch, key)
    logits_BTV = model.logits(params, hidden_BTD)
    loss_BT, nll_BT = cross_entropy(logits_BTV, batch["targets"], label_smoothing=label_smoothing, z_loss=z_loss)
    count = jnp.sum(batch["weights"])
    nll = jnp.sum(nll_BT * batch["weights"])
    total = jnp.sum(loss_BT * batch["weights"]) + model.config.router_loss * balance * count
    totals = {"nll": (nll, count)}
    if model.config.experts:
        totals["router_balance"] = (balance * count, count)
    return total, count, totals
