"""The losses: against their definition in float64, chunked against whole, split against whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.ops import plain_head, token_chunks
from research.ops.loss import cross_entropy
from research.ops.plain_head import head_loss
from research.parallel.axes import RULES, constrain
from research.parallel.mesh import make_mesh

B, T, D, V = 8, 96, 16, 40
TERMS = [(0.0, 0.0), (0.1, 0.0), (0.1, 1e-2)]


def arrays():
    """States, table, targets and weights that count about half of the tokens."""
    rng = np.random.default_rng(0)
    states, table = rng.normal(size=(B, T, D)), rng.normal(size=(V, D))
    targets, weights = rng.integers(0, V, (B, T)), rng.integers(0, 2, (B, T))
    return (
        states.astype(np.float32),
        table.astype(np.float32),
        targets.astype(np.int32),
        weights.astype(np.float32),
    )


@pytest.mark.parametrize(("smoothing", "z_loss"), TERMS)
def test_cross_entropy_is_its_definition(smoothing, z_loss):
    states, table, targets, _ = arrays()
    logits = states.astype(np.float64) @ table.astype(np.float64).T
    log_z = np.log(np.sum(np.exp(logits), axis=-1))
    log_p = logits - log_z[..., None]
    nll = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    want = (1 - smoothing) * nll - smoothing * log_p.mean(-1) + z_loss * log_z**2
    got, got_nll = cross_entropy(
        jnp.asarray(logits, jnp.float32), targets, label_smoothing=smoothing, z_loss=z_loss
    )
    np.testing.assert_allclose(
        got, want, atol=2e-5
    )  # logits of up to 20, of which float32 keeps 1e-6 relative
    np.testing.assert_allclose(got_nll, nll, atol=2e-5)


# On a GPU the table and its gradient stay in one order, see `_local_head`.
@pytest.fixture(params=["cpu", "gpu"])
def platform(request, monkeypatch):
    monkeypatch.setattr(plain_head, "platform", lambda: request.param)


# 7 divides nothing here: the largest divisor below it is taken; 0 is CHUNK.
@pytest.mark.parametrize("chunk", [0, 7, 1, 2 * token_chunks.CHUNK])
@pytest.mark.parametrize(("smoothing", "z_loss"), TERMS)
def test_the_chunked_loss_and_its_gradients_are_those_of_all_logits(
    smoothing, z_loss, chunk, platform
):
    states, table, targets, weights = arrays()

    def chunked(states, table):
        return 0.5 * head_loss(states, table, targets, weights, smoothing, z_loss, 0.0, chunk)[0]

    def whole(states, table):
        logits = jnp.einsum("BTD,VD->BTV", states, table)
        loss, _ = cross_entropy(logits, targets, label_smoothing=smoothing, z_loss=z_loss)
        return 0.5 * jnp.sum(loss * weights)

    got, gradients = jax.value_and_grad(chunked, argnums=(0, 1))(states, table)
    want, wanted = jax.value_and_grad(whole, argnums=(0, 1))(states, table)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for gradient, right in zip(gradients, wanted):
        np.testing.assert_allclose(
            gradient, right, atol=1e-4
        )  # sums over 768 tokens in another order


def test_a_soft_cap_bounds_logits_and_is_in_the_gradients():
    states, table, targets, weights = arrays()

    def chunked(states, table):
        return head_loss(states, table, targets, weights, 0.1, 1e-2, 3.0)[0]

    def whole(states, table):
        logits = 3 * jnp.tanh(jnp.einsum("BTD,VD->BTV", states, table) / 3)
        loss, _ = cross_entropy(logits, targets, label_smoothing=0.1, z_loss=1e-2)
        return jnp.sum(loss * weights)

    got, gradients = jax.value_and_grad(chunked, argnums=(0, 1))(states, table)
    want, wanted = jax.value_and_grad(whole, argnums=(0, 1))(states, table)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for gradient, right in zip(gradients, wanted):
        np.testing.assert_allclose(gradient, right, atol=1e-4)  # as without a cap, above


@pytest.mark.parametrize(
    "mesh", ["data:2,fsdp:2,tensor:2", "fsdp:2,context:2,tensor:2", "expert:8"]
)
def test_the_loss_of_split_tokens_and_a_split_vocabulary_is_the_same(mesh, platform):
    states, table, targets, weights = arrays()

    def loss(states, table, targets, weights):
        return head_loss(states, table, targets, weights, 0.1, 1e-2)[0]

    value_and_grad = jax.value_and_grad(loss, argnums=(0, 1))
    want, wanted = value_and_grad(states, table, targets, weights)
    with jax.set_mesh(make_mesh(mesh)):
        placed = (
            constrain(jnp.asarray(states), ("batch", "length", "vector"), RULES),
            constrain(table, ("vocab", "vector"), RULES),
        )
        rest = (constrain(jnp.asarray(x), ("batch", "length"), RULES) for x in (targets, weights))
        got, gradients = jax.jit(value_and_grad)(*placed, *rest)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for gradient, right, x in zip(gradients, wanted, placed):
        np.testing.assert_allclose(
            gradient, right, atol=1e-4
        )  # sums over 768 tokens in another order
        assert jax.typeof(gradient).sharding == jax.typeof(x).sharding


def test_no_more_logits_exist_than_those_of_a_chunk():
    words, tokens = 4096, 4 * token_chunks.CHUNK

    def loss(states, table):
        zeros = jnp.zeros((1, tokens), jnp.int32)
        return head_loss(states, table, zeros, jnp.ones((1, tokens)))[0]

    shapes = (
        jax.ShapeDtypeStruct((1, tokens, 8), jnp.float32),
        jax.ShapeDtypeStruct((words, 8), jnp.float32),
    )
    memory = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile().memory_analysis()
    all_logits = tokens * words * 4
    assert (
        memory.temp_size_in_bytes < 0.8 * all_logits
    )  # three arrays of a chunk's size live at a time
