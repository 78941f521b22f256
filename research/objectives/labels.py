"""The logits of labels, from which every objective of a classifier makes its loss."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from research.models.config import LayerLosses
from research.models.model import Model
from research.objectives.objective import Totals
from research.objectives.tokens import with_layer_losses
from research.ops.loss import cross_entropy
from research.tree import Tree
from research.weights.rules import attach


def label_logits(
    model: Model,
    trainable: Tree,
    held: Mapping[str, Tree],
    batch: dict[str, jax.Array],
    key: jax.Array | None,
) -> tuple[jax.Array, LayerLosses]:
    """(logits float32 of the model's V labels, [B, 1, V] of whole texts or [B, T, V] of tokens, the
    layers' losses by name)."""
    params = attach(held["base"], trainable, key)
    # The encoder and the dropout in front of the classifier must not draw the same numbers.
    keys = (None, None) if key is None else tuple(jax.random.split(key))
    hidden_BTD, layer_losses = model.hidden(params, typed(model, batch), keys[0])
    return model.class_logits(params, hidden_BTD, keys[1], batch["segments"]), layer_losses


def class_loss(
    model: Model,
    trainable: Tree,
    held: Mapping[str, Tree],
    batch: dict[str, jax.Array],
    key: jax.Array | None,
    label_smoothing: float,
) -> tuple[jax.Array, jax.Array, Totals]:
    """(sum of the loss in nats over what has a class, how many that are, totals): "nll", the same
    without label smoothing, and "accuracy", those whose likeliest class is the right one.

    Each of the S places of a row is one, or 0 in `weights`: S is T for words, 1 for whole texts.
    """
    logits_BSV, layer_losses = label_logits(model, trainable, held, batch, key)
    # V is the number of classes here.
    loss_BS, nll_BS = cross_entropy(logits_BSV, batch["targets"], label_smoothing=label_smoothing)
    # Weights are 0 in the rows that fill up the last batch of an evaluation, too.
    weights_BS, count = batch["weights"], jnp.sum(batch["weights"])
    right_BS = (jnp.argmax(logits_BSV, axis=-1) == batch["targets"]).astype(jnp.float32)
    total, totals = with_layer_losses(
        model.config, layer_losses, jnp.sum(loss_BS * weights_BS), count
    )
    nll, right = jnp.sum(nll_BS * weights_BS), jnp.sum(right_BS * weights_BS)
    return total, count, {"nll": (nll, count), "accuracy": (right, count), **totals}


def typed(model: Model, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The batch without the types of tokens where the model has no second one, as RoBERTa."""
    if model.config.token_types > 1:
        return batch
    return {name: field for name, field in batch.items() if name != "token_types"}
