"""Norms keep what they are given for their gradients, and no float32 activations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.ops import norm
from research.ops.norm import layer_norm, rms_norm

B, T, D = 2, 3, 16
NORMS = {
    "rms": lambda x, scale: rms_norm(x, scale, 1e-5, 1.0),
    "layer": lambda x, scale: layer_norm(x, scale, scale, 1e-5),
}


@pytest.mark.parametrize("name", NORMS)
def test_accelerators_keep_the_input_alone(monkeypatch, name):
    x_BTD = jax.random.normal(jax.random.key(0), (B, T, D), jnp.bfloat16)
    scale_D = jnp.linspace(0.5, 2, D)

    def loss(x_BTD, scale_D):
        """Five layers of a scan, which keeps what the backward pass reads of each."""
        layer = lambda x_BTD, _: (x_BTD + jnp.sin(NORMS[name](x_BTD, scale_D)), None)
        return jnp.sum(jax.lax.scan(layer, x_BTD, length=5)[0].astype(jnp.float32))

    gradient = jax.value_and_grad(loss, argnums=(0, 1))
    kept, wanted = f"f32[5,{B},{T},{D}]", gradient(x_BTD, scale_D)
    assert kept in str(jax.make_jaxpr(gradient)(x_BTD, scale_D))
    monkeypatch.setattr(norm, "platform", lambda: "tpu")
    jax.clear_caches()  # `scan` would take the layer that it has traced
    assert kept not in str(jax.make_jaxpr(gradient)(x_BTD, scale_D))
    # The same operations, which a compiler may fuse otherwise: a rounding of bfloat16 at most.
    close = partial(np.testing.assert_allclose, rtol=2**-7, atol=2**-7)
    jax.tree.map(lambda a, b: close(np.float32(a), np.float32(b)), gradient(x_BTD, scale_D), wanted)
