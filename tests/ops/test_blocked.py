"""Causal attention by query blocks is the attention of the reference, in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.ops import blocked
from research.ops.attention import Visibility, reference
from research.parallel.axes import RULES, constrain
from research.parallel.mesh import make_mesh

B, T, H = 8, 4 * blocked.SMALLEST, 8


def case(heads: int, kv_heads: int, window: int):
    """Queries, keys, values of two packed documents and padding, and who sees whom."""
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.normal(size=(B, T, n, H)), jnp.float32) for n in (heads, kv_heads, kv_heads)
    )
    positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    segments = np.ones((B, T), np.int32)
    segments[:, 50:], segments[:, 120:] = 2, 0
    positions[:, 50:] -= 50
    return q, k, v, positions, segments, window


def gradients(attend, q, k, v, positions, segments, window):
    """Output and gradients of a loss over tokens that are no padding."""
    visibility = Visibility(
        positions, positions, segments, segments, causal=True, window=window, packed=True
    )
    real = (segments > 0)[:, :, None, None]

    def loss(q, k, v):
        out = attend(q, k, v, visibility, 0.3)
        return jnp.sum(jnp.where(real, jnp.sin(out), 0)), jnp.where(real, out, 0)

    grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return out, *grads


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (2, 1)])
@pytest.mark.parametrize("window", [0, 20])
def test_blocks_are_the_whole(heads, kv_heads, window):
    arrays = case(heads, kv_heads, window)
    for got, want in zip(gradients(blocked.attend, *arrays), gradients(reference, *arrays)):
        np.testing.assert_allclose(
            got, want, atol=3e-5
        )  # sums over up to 128 keys in another order


def test_blocks_with_a_soft_cap_are_the_whole():
    arrays = case(4, 2, 20)

    def capped(attend):
        return lambda q, k, v, visibility, scale: attend(q, k, v, visibility, scale, softcap=0.5)

    got, want = gradients(capped(blocked.attend), *arrays), gradients(capped(reference), *arrays)
    for mine, right in zip(got, want):
        np.testing.assert_allclose(mine, right, atol=3e-5)  # as without a cap
    assert not np.allclose(got[0], gradients(reference, *arrays)[0], atol=1e-3)


def test_bfloat16_compiles_with_all_optimizations_and_is_close():
    # Under the passes that the other tests leave out, XLA's CPU backend refused this gradient once.
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        q, k, v, *rest = case(4, 4, 0)
        got = gradients(blocked.attend, *(x.astype(jnp.bfloat16) for x in (q, k, v)), *rest)
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    for mine, right in zip(got, gradients(reference, q, k, v, *rest)):
        # bfloat16 keeps 8 bits: relative errors of 2^-8 that add up over a few operations.
        assert np.sqrt(np.mean((mine.astype(jnp.float32) - right) ** 2) / np.mean(right**2)) < 0.02


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (2, 1)])
def test_blocks_are_the_whole_on_a_mesh(heads, kv_heads):
    arrays = case(heads, kv_heads, 0)
    want = gradients(reference, *arrays)
    with jax.set_mesh(make_mesh("data:2,fsdp:2,tensor:2" if kv_heads > 1 else "fsdp:8")):
        axes = [("batch", "length", name, "head") for name in ("heads", "kv_heads", "kv_heads")]
        qkv = [constrain(x, names, RULES) for x, names in zip(arrays[:3], axes)]
        index = [constrain(jnp.asarray(x), ("batch", "length"), RULES) for x in arrays[3:5]]
        got = gradients(blocked.attend, *qkv, *index, 0)
    for mine, right in zip(got, want):
        np.testing.assert_allclose(
            mine, right, atol=3e-5
        )  # sums over up to 128 keys in another order


def test_the_hidden_half_is_not_computed():
    visibility = Visibility(*(jnp.zeros((1, T), jnp.int32),) * 4, causal=True, packed=True)
    x = jnp.zeros((1, T, 1, 64))
    flops = [
        jax.jit(lambda x, f=f: f(x, x, x, visibility, 1.0))
        .lower(x)
        .compile()
        .cost_analysis()["flops"]
        for f in (blocked.attend, reference)
    ]
    # Four blocks do 1/4 + 2/4 + 3/4 + 4/4 of their rows' products: 10/16; the softmax is beside
    # that.
    assert flops[0] / flops[1] < 0.68


def test_what_it_does_not_serve_is_left_to_the_reference():
    q = jnp.zeros((1, T, 2, H))
    zeros = (jnp.zeros((1, T), jnp.int32),) * 4
    assert blocked.serves(q, Visibility(*zeros, causal=True, packed=True))
    assert not blocked.serves(q, Visibility(*zeros, causal=False, packed=True))
    assert not blocked.serves(q, Visibility(*zeros, causal=True, packed=False))
    assert not blocked.serves(q[:, :1], Visibility(*zeros, causal=True, packed=True))
    with jax.set_mesh(make_mesh("context:8")):
        split = constrain(q, ("batch", "length", "heads", "head"), RULES)
        assert not blocked.serves(split, Visibility(*zeros, causal=True, packed=True))
