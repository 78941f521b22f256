"""The train step and the evaluation step, pure functions for any objective."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from research import tree
from research.models.model import Model
from research.parallel.placement import cut_rows
from research.scopes import scope
from research.training.optimizer import global_norm
from research.training.skipping import counts
from research.training.state import TrainState
from research.weights.rules import drops

Batch = dict[str, jax.Array]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Model,
    objective: Any,
    optimizer: optax.GradientTransformationExtraArgs,
    accumulate: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """(state after one update on `batch`, metrics as float32 scalars over the whole batch).

    `batch` has arrays [B, ...], processed in `accumulate` micro-batches of B / accumulate rows. The
    loss is (sum over all tokens) / (count of all tokens), in nats per token, however the batch is
    cut into micro-batches or spread over devices; only losses that are no sums over tokens, such as
    the balance of experts (`research.ops.route.load_balance`), are those of the micro-batches,
    weighted by their tokens. "grad_norm" is the norm before clipping. Only
    `state.trainable` has gradients and optimizer state.
    """
    # The step's key follows from the run's, so a resumed run draws the same numbers.
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    # Gradients of the sum, not of the mean: sums of micro-batches add up whatever number of
    # tokens each has.
    gradients, total, count, totals = _gradients(state, batch, key, model, objective, accumulate)
    # A batch without a single counted token must not divide by zero; its gradients are zero.
    scale = 1.0 / jnp.maximum(count, 1.0)
    with scope("optimizer"):
        gradients = jax.tree.map(
            lambda g, w: (g * scale.astype(g.dtype)).astype(w.dtype), gradients, state.trainable
        )
        norm = global_norm(gradients)
        # The norm is passed on, so that clipping does not compute it a second time.
        updates, optimizer_state = optimizer.update(
            gradients, state.optimizer, state.trainable, grad_norm=norm, loss=total * scale
        )
        trainable = optax.apply_updates(state.trainable, updates)
    metrics = {"loss": total * scale, "grad_norm": norm}
    metrics |= {name: s / jnp.maximum(n, 1.0) for name, (s, n) in totals.items()}
    metrics |= counts(optimizer_state)
    # Sharded as the old state, whose buffers it takes over (the caller donates them).
    new = TrainState(
        state.step + 1,
        trainable,
        state.held,
        optimizer_state,
        state.key,
    )
    return new, metrics


def eval_step(
    trainable: tree.Tree,
    held: Mapping[str, tree.Tree],
    batch: Batch,
    *,
    model: Model,
    objective: Any,
) -> dict[str, tuple]:
    """(sum, count) pairs of float32 scalars by name: "loss" and the totals of the objective.

    Without dropout. The caller adds the pairs over batches and divides once, so that a batch with
    few tokens weighs less.
    """
    # No key, no dropout.
    total, count, totals = objective.loss(model, trainable, held, batch, None)
    return {"loss": (total, count), **totals}


def _gradients(
    state: TrainState, batch: Batch, key: jax.Array, model: Model, objective: Any, accumulate: int
):
    """(gradients of the summed loss, that sum, its count, the objective's totals), each summed over
    all micro-batches."""

    def _loss(trainable, micro, key):
        total, count, totals = objective.loss(model, trainable, state.held, micro, key)
        return total, (count, totals)

    value_and_grad = jax.value_and_grad(_loss, has_aux=True)
    # Without dropout and noise no key is passed, so the program has no random numbers in it.
    c = model.config
    use_key = c.dropout > 0 or c.embedding_noise > 0 or drops(state.trainable)
    if accumulate == 1:
        (total, (count, totals)), gradients = value_and_grad(
            state.trainable, batch, key if use_key else None
        )
        return gradients, total, count, totals

    # Every micro-batch draws other dropout masks, as the rows of one batch do.
    def _add(carry, numbered):
        index, micro = numbered
        out, gradients = value_and_grad(
            state.trainable, micro, jax.random.fold_in(key, index) if use_key else None
        )
        # A sum over many micro-batches in bfloat16 would lose the smaller ones.
        wide = jax.tree.map(lambda g: g.astype(model.precision.accumulate_dtype), gradients)
        return jax.tree.map(jnp.add, carry, (out, wide)), None

    # A scan over micro-batches: the memory is that of one, whatever their number.
    micros = jnp.arange(accumulate), jax.tree.map(lambda x: cut_rows(x, accumulate), batch)
    # The scan's carry needs the shapes of the sums before the first micro-batch has run.
    first = jax.tree.map(lambda x: x[0], micros[1])
    sums = jax.eval_shape(_loss, state.trainable, first, key if use_key else None)
    zeros = jax.tree.map(
        lambda w: jnp.zeros_like(w, model.precision.accumulate_dtype), state.trainable
    )
    start = (jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), sums), zeros)
    ((total, (count, totals)), gradients), _ = jax.lax.scan(_add, start, micros)
    return gradients, total, count, totals
