"""The loss over counted tokens that all token-predicting objectives share."""

import jax
import jax.numpy as jnp

from research import tree
from research.models.model import Model
from research.ops.einsum import gather
from research.ops.loss import cross_entropy, head_loss
from research.weights.rules import attach

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
    params = attach(frozen, trainable, key)
    hidden_BTD, balance = model.hidden(params, batch, key)
    states_BTD, table_VD, bias_V = model.head(params, hidden_BTD)
    count = jnp.sum(batch["weights"])
    if bias_V is None and isinstance(table_VD, jax.Array):
        table_VD = gather(table_VD.astype(states_BTD.dtype))
        total, nll = head_loss(states_BTD, table_VD, batch["targets"], batch["weights"], label_smoothing, z_loss)
    else:
        logits_BTV = model.logits(params, hidden_BTD)
        loss_BT, nll_BT = cross_entropy(logits_BTV, batch["targets"], label_smoothing=label_smoothing, z_loss=z_loss)
        total, nll = jnp.sum(loss_BT * batch["weights"]), jnp.sum(nll_BT * batch["weights"])
    total += model.config.router_loss * balance * count
    totals = {"nll": (nll, count)}
    if model.config.experts:
        totals["router_balance"] = (balance * count, count)
    return total, count, totals
