"""DoRA over a column of zeros, as published checkpoints have them: 0 / 0 counts as 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.tuning.adapter_bank import bank
from research.tuning.lora_init import column_norms
from research.weights.lora import Lora, LoraAdapter
from research.weights.quantized import quantize_array

EQN = "BD,DF->BF"


def zero_column(over, b_scale=0.0):
    """A DoRA as it starts, over a weight [64, 8] whose column 3 is zero."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(64, 8)).astype(np.float32)
    w[:, 3] = 0
    base = jnp.asarray(w)
    if over == "nf4":
        # One group an output, so the group of the zero column has a scale of 0 too.
        base = quantize_array(base, "nf4", inputs=1)
    a = jnp.asarray(rng.normal(size=(64, 2)).astype(np.float32))
    b = b_scale * jnp.asarray(rng.normal(size=(2, 8)).astype(np.float32))
    plain = LoraAdapter(a, b, jnp.float32(2.0))
    magnitude = column_norms(base, LoraAdapter(a, 0 * b, jnp.float32(2.0)))
    return base, plain, LoraAdapter(a, b, jnp.float32(2.0), magnitude)


@pytest.mark.parametrize("over", ["array", "nf4"])
def test_a_fresh_dora_is_lora_and_its_gradients_are_finite(over):
    base, plain, dora = zero_column(over)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 64)).astype(np.float32))

    def loss(adapter):
        y = Lora(base, adapter).einsum(EQN, x)
        return jnp.sum(y**2), y

    (_, want), _ = jax.value_and_grad(loss, has_aux=True)(plain)
    (_, got), gradients = jax.value_and_grad(loss, has_aux=True)(dora)
    np.testing.assert_allclose(got, want, atol=1e-4)  # m / |W| is 1 up to float32 rounding
    assert not np.any(got[:, 3]) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert np.any(gradients.b)
    np.testing.assert_allclose(Lora(base, dora).dense(), Lora(base, plain).dense(), atol=1e-4)


def test_a_trained_zero_column_is_finite_too():
    base, _, dora = zero_column("array", b_scale=0.1)
    x = jnp.ones((1, 64))
    got, gradient = jax.value_and_grad(lambda adapter: jnp.sum(Lora(base, adapter).einsum(EQN, x)))(
        dora
    )
    # m is still 0 there, so the column is too, but m learns.
    assert np.isfinite(got) and float(gradient.magnitude[3]) != 0


def test_a_bank_of_adapters_takes_zero_columns():
    base, plain, dora = zero_column("array")
    params = bank({"w": base}, [{"w": dora}, {"w": plain}], jnp.array([0, 1, -1]))
    got = params["w"].einsum("BD,DF->BF", jnp.ones((3, 64)))
    np.testing.assert_allclose(got, jnp.ones((3, 64)) @ base, atol=1e-4)
