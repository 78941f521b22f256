"""Updates that are left out: the run goes on as if it had not had their batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.training.skipping import SkipConfig, counts, skipping

PARAMS = {"w": jnp.arange(4.0), "count": jnp.zeros((2, 3))}


def run(config: SkipConfig, gradients: list[float], loss: float = 1.0):
    """(parameters, optimizer state) after updates by gradients that are all one number."""
    optimizer = skipping(optax.with_extra_args_support(optax.adam(0.1)), config)

    @jax.jit
    def step(params, state, size):
        tree = jax.tree.map(lambda w: jnp.full_like(w, size), params)
        updates, state = optimizer.update(tree, state, params, grad_norm=jnp.abs(size), loss=loss)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, optimizer.init(PARAMS)
    for size in gradients:
        params, state = step(params, state, jnp.float32(size))
    return params, state


def same(one, other) -> bool:
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in leaves)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_run_is_bit_by_bit_that_without_the_batch(bad):
    config = SkipConfig(nonfinite=True)
    params, state = run(config, [0.5, bad, bad, 0.25])
    without, _ = run(config, [0.5, 0.25])
    assert same(params, without) and int(state.skipped) == 2 and int(state.in_row) == 0
    assert int(run(config, [0.5, bad, bad])[1].in_row) == 2


def test_a_spike_is_left_out_once_there_is_a_window_to_compare_with():
    config, calm = SkipConfig(sigmas=3.0, window=4), [1.0, 1.1, 0.9, 1.0]
    params, state = run(config, [*calm, 50.0, 1.05])
    assert same(params, run(config, [*calm, 1.05])[0]) and int(state.skipped) == 1
    # Before there is one, after it for what lies within, and of what is no spike, none.
    assert int(run(config, [1.0, 50.0, 1.0])[1].skipped) == 0
    assert int(run(config, [*calm, 1.1, 0.8])[1].skipped) == 0


def test_counts_are_those_of_an_optimizer_that_leaves_out_updates():
    assert counts(optax.adam(0.1).init(PARAMS)) == {}
    assert set(counts(run(SkipConfig(nonfinite=True), [1.0])[1])) == {"skipped", "skipped_in_row"}
