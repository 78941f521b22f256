"""Zeros that training keeps, under every optimizer and with decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.training import optimizer


def params():
    w = jax.random.normal(jax.random.key(0), (2, 8, 8))
    zeros = jax.random.bernoulli(jax.random.key(1), 0.5, w.shape)
    return {"layers": {"mlp": {"up": jnp.where(zeros, 0, w)}, "norm": {"scale": jnp.zeros((2, 8))}}}


@pytest.mark.parametrize("name", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_what_is_zero_stays_zero_and_the_rest_moves(name):
    axes = {
        "layers": {
            "mlp": {"up": ("layers", "embed", "mlp")},
            "norm": {"scale": ("layers", "vector")},
        }
    }
    config = optimizer.OptimizerConfig(name=name, learning_rate=0.1, keep_zeros=True)
    transform, _ = optimizer.make(config, axes, 4)
    first = now = params()
    state, update = transform.init(now), jax.jit(transform.update)
    for step in range(3):
        gradients = jax.tree.map(lambda w: jax.random.normal(jax.random.key(step), w.shape), now)
        updates, state = update(gradients, state, now)
        now = optax.apply_updates(now, updates)
    before, after = (np.asarray(x["layers"]["mlp"]["up"]) for x in (first, now))
    np.testing.assert_array_equal(after == 0, before == 0)
    assert (after != before)[before != 0].all()
    assert np.asarray(now["layers"]["norm"]["scale"]).all()  # no matrix: zeros move


def test_nothing_to_keep_is_refused():
    config = optimizer.OptimizerConfig(keep_zeros=True)
    with pytest.raises(ValueError, match="optimizer.keep_zeros: no matrix .*tune.method=full"):
        optimizer.make(config, {"layers": {"a": ("layers", "embed")}}, 4)
