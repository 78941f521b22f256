"""Elementwise functions between barriers: the plain function, computed in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.ops.elementwise import apart


def gated(gate, up):
    return jax.nn.gelu(gate) * up


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_value_and_gradients_are_those_of_float32_rounded_once(dtype):
    arrays = [
        jax.random.normal(key, (64, 8)).astype(dtype)
        for key in jax.random.split(jax.random.key(0), 3)
    ]
    wide = [x.astype(jnp.float32) for x in arrays]
    y, pull = jax.vjp(lambda *a: apart(gated, *a), *arrays[:2])
    want_y, want_pull = jax.vjp(gated, *wide[:2])
    for got, want in zip((y, *pull(arrays[2])), (want_y, *want_pull(wide[2]))):
        assert got.dtype == dtype
        # Half a unit in the last place of bfloat16; float32 differs by how its fused operations are
        # rounded.
        np.testing.assert_allclose(
            got.astype(jnp.float32),
            want,
            rtol={"bfloat16": 2**-8, "float32": 1e-5}[dtype],
            atol=1e-6,
        )
