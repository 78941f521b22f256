"""The logits of labels, from which every objective of a classifier makes its loss."""

from collections.abc import Mapping

import jax

from research.models.config import LayerLosses
from research.models.model import Model
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


def typed(model: Model, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The batch without the types of tokens where the model has no second one, as RoBERTa."""
    if model.config.token_types > 1:
        return batch
    return {name: field for name, field in batch.items() if name != "token_types"}
