"""SigLIP's loss over a batch that devices share is that of one device, with its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from research.ops.sigmoid_loss import sigmoid_loss
from research.parallel.mesh import make_mesh

B, D = 16, 6


def operands():
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(2, B, D)).astype(np.float32)
    weights = np.ones(B, np.float32)
    weights[[3, 11]] = 0
    return images, texts, weights, np.float32(2.0), np.float32(-1.0)


def by_definition(images, texts, weights, scale, bias) -> float:
    """Algorithm 1 of the paper, pair by pair."""
    kept = np.flatnonzero(weights)
    return sum(
        np.log1p(np.exp(-(1 if i == j else -1) * (scale * images[i] @ texts[j] + bias)))
        for i in kept
        for j in kept
    )


@pytest.mark.parametrize("mesh", ["data:8", "data:2,fsdp:4"])
def test_devices_share_the_loss_and_its_gradient_of_one(mesh):
    given = operands()
    loss = jax.value_and_grad(sigmoid_loss, argnums=(0, 1, 3, 4))
    total, gradients = loss(*given)
    # Float32 sums of 196 terms of some nats.
    np.testing.assert_allclose(total, by_definition(*given), rtol=1e-5)
    with jax.set_mesh(make_mesh(mesh)):
        placed = [
            jax.device_put(x, PartitionSpec(("data", "fsdp"), *[None] * (x.ndim - 1)))
            if x.ndim
            else jnp.asarray(x)
            for x in given
        ]
        shared, others = jax.jit(loss)(*placed)
    # The same terms in another order.
    np.testing.assert_allclose(shared, total, rtol=1e-6)
    for one, other in zip(gradients, others):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
    assert not np.asarray(gradients[0])[3].any()
