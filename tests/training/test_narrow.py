"""Parameters in 16 bits train, or it is said that they do not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.training.narrow import standing_still
from research.training.optimizer import OptimizerConfig, make

AXES = {"table": ("vocab", "embed"), "up": ("layers", "embed", "mlp")}


def steps(name, dtype, count=3, **config):
    """Parameters, state and start of a few steps; a row of the table has no gradient, others have
    gradients whose squares float16 does not hold."""
    rng = np.random.default_rng(0)
    start = {
        "table": jnp.asarray(rng.normal(size=(8, 4)), dtype),
        "up": jnp.asarray(rng.normal(size=(2, 4, 6)), dtype),
    }
    gradients = jax.tree.map(lambda x: (1e-4 * x).astype(dtype), start)
    gradients["table"] = gradients["table"].at[3].set(0)
    optimizer, _ = make(
        OptimizerConfig(
            name,
            learning_rate=1e-2,
            schedule="constant",
            warmup_steps=0,
            weight_decay=0.0,
            clip_norm=None,
            **config,
        ),
        AXES,
        10,
    )
    state, params = optimizer.init(start), start
    update = jax.jit(optimizer.update)
    for _ in range(count):
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params, state, start


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "adafactor", "lion", "muon"])
def test_float16_trains_as_float32_does(name):
    params, state, start = steps(name, jnp.float16)
    wide, _, _ = steps(name, jnp.float32)
    for path, x in params.items():
        assert x.dtype == jnp.float16 and np.isfinite(x).all()
        # float16 keeps 11 bits of numbers up to 4, in each of three steps; the gradients differ by
        # as much, which Muon's iteration carries further.
        np.testing.assert_allclose(x, wide[path], atol=2e-2 if name == "muon" else 1e-2)
        moved = np.abs(np.float32(x) - np.float32(start[path]))
        assert moved.max() > 1e-2
    np.testing.assert_array_equal(params["table"][3], start["table"][3])
    assert not any(x.dtype == jnp.float16 for x in jax.tree.leaves(state))


def test_bfloat16_keeps_the_state_that_it_had():
    """Runs in bfloat16 resume: their moments are in the parameters' type, as ever."""
    _, state, _ = steps("adamw", jnp.bfloat16, count=1)
    assert {x.dtype for x in jax.tree.leaves(state) if x.ndim} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("dtype", "rate", "says"),
    [
        ("bfloat16", 2e-5, "keeps 8 bits: at learning_rate=2e-05 numbers above 0.01 do not move"),
        ("float16", 2e-5, "keeps 11 bits: .* above 0.082 do not .* in steps of 0.00098"),
        ("bfloat16", 2e-2, None),
        ("bfloat16", 0.0, None),
        ("float32", 1e-9, None),
    ],
)
def test_numbers_that_stand_still_are_said(dtype, rate, says):
    lines = standing_still(jnp.dtype(dtype), rate)
    assert len(lines) == (says is not None)
    if says:
        with pytest.raises(ValueError, match=says):
            raise ValueError(lines[0])
        # The line is true: a number above the limit is what it was, a tenth of it moves.
        limit = np.float32(rate * 2 ** (jnp.finfo(dtype).nmant + 2))
        above, below = (jnp.asarray(w, dtype) for w in (1.01 * limit, 0.1 * limit))
        assert (above + np.float32(rate)).astype(dtype) == above
        assert (below + np.float32(rate)).astype(dtype) != below
