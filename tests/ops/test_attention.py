"""The attention seam: the plain formula, whatever implements it and however it is spread over
devices."""

from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from research.ops.attention import Visibility, attend, reference
from research.ops.kernels import flash, splash
from research.parallel.axes import RULES, partition
from research.parallel.mesh import make_mesh

KERNELS = {
    "splash": partial(splash.attend, interpret=True),
    "flash": partial(flash.attend, interpret=True),
}


def plain(q, k, v, mask_BTS, scale, bias, softcap=0.0):
    """Attention in float64, one head after the other."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    heads = []
    for n in range(q.shape[2]):
        group = n // (q.shape[2] // k.shape[2])
        scores = scale * np.einsum("bth,bsh->bts", q[:, :, n], k[:, :, group])
        scores = softcap * np.tanh(scores / softcap) if softcap else scores
        scores += 0 if bias is None else np.asarray(bias, np.float64)[:, n]
        scores = np.where(mask_BTS, scores, -np.inf)
        probs = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
        heads.append(
            np.einsum("bts,bsh->bth", probs / probs.sum(-1, keepdims=True), v[:, :, group])
        )
    return np.stack(heads, axis=2)


def packed_rows(B, T, seed=0):
    """Rows of documents of random lengths with padding after the last: segments and positions, [B,
    T] int32."""
    rng = np.random.default_rng(seed)
    segments, positions = np.zeros((2, B, T), np.int32)
    for b in range(B):
        edges = [0, *sorted(rng.integers(1, T + 1, 4))]
        for index, (start, stop) in enumerate(zip(edges, edges[1:])):
            segments[b, start:stop], positions[b, start:stop] = index + 1, np.arange(stop - start)
    return segments, positions


def normals(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.sampled_from([(1, 5, 5, 2, 2, 4), (2, 3, 6, 6, 2, 3)]),  # B, T, S, N, K, H
    causal=st.booleans(),
    window=st.sampled_from([0, 1, 3]),
    with_bias=st.booleans(),
    softcap=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_reference_is_the_formula(sizes, causal, window, with_bias, softcap, seed):
    B, T, S, N, K, H = sizes
    rng = np.random.default_rng(seed)
    q, k, v, bias = normals(seed, (B, T, N, H), (B, S, K, H), (B, S, K, H), (B, N, T, S))
    bias = bias if with_bias else None
    q_positions, k_positions = rng.integers(0, 5, (B, T)), rng.integers(0, 5, (B, S))
    q_segments, k_segments = rng.integers(0, 3, (B, T)), rng.integers(0, 3, (B, S))
    visibility = Visibility(q_positions, k_positions, q_segments, k_segments, causal, window)
    got = jax.jit(reference, static_argnums=6)(q, k, v, visibility, 0.3, bias, softcap)
    distance = q_positions[:, :, None] - k_positions[:, None, :]
    mask = q_segments[:, :, None] == k_segments[:, None, :]
    mask &= (distance >= 0) | (not causal)
    mask &= ((distance if causal else abs(distance)) < window) | (window == 0)
    sees = mask.any(-1)  # a query that sees nothing has no answer
    want = plain(q, k, v, mask | ~sees[:, :, None], 0.3, bias, softcap)
    # Float32 sums of up to 6 products of order 1.
    np.testing.assert_allclose(np.asarray(got)[sees], want[sees], atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), causal=st.booleans(), window=st.sampled_from([0, 1, 4]))
def test_in_packed_rows_indices_hide_what_positions_hide(seed, causal, window):
    """The law under `packed`, which lets kernels forget the positions."""
    segments, positions = packed_rows(2, 24, seed)
    by_position = Visibility(positions, positions, segments, segments, causal, window).mask_BTS()
    indices = np.broadcast_to(np.arange(24), (2, 24))
    by_index = Visibility(indices, indices, segments, segments, causal, window).mask_BTS()
    real = segments > 0
    np.testing.assert_array_equal(np.asarray(by_position)[real], np.asarray(by_index)[real])


def value_and_gradients(run, q, k, v, visibility, scale):
    """Outputs at real tokens, and the gradients of their product with fixed random numbers."""
    (cotangent,) = normals(7, q.shape)
    real = visibility.q_segments_BT[:, :, None, None] > 0

    def loss(q, k, v, visibility):
        out = jnp.where(real, run(q, k, v, visibility, scale), 0)
        return jnp.sum(out * cotangent), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(
        q, k, v, visibility
    )
    return out, *gradients


def the_case(B, T, N, K, H, causal, window=0):
    """Operands and visibility of packed self-attention."""
    segments, positions = packed_rows(B, T)
    visibility = Visibility(positions, positions, segments, segments, causal, window, packed=True)
    return *normals(3, (B, T, N, H), (B, T, K, H), (B, T, K, H)), visibility


# Sums of up to 256 products of order 1 in another order, in float32.
close = partial(np.testing.assert_allclose, atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("kernel", "case"),
    [
        ("splash", dict(B=2, T=256, N=4, K=2, H=16, causal=True)),
        ("splash", dict(B=1, T=384, N=2, K=1, H=8, causal=True, window=20)),
        ("splash", dict(B=1, T=384, N=2, K=1, H=8, causal=False, window=20)),
        ("flash", dict(B=2, T=256, N=4, K=2, H=16, causal=True)),
        (
            "flash",
            dict(B=1, T=128, N=2, K=1, H=24, causal=False),
        ),  # a head that the kernel pads to 32
        (
            "flash",
            dict(B=1, T=150, N=2, K=1, H=16, causal=False),
        ),  # a length that is filled up to 256
    ],
)
def test_kernel_is_the_reference(kernel, case):
    operands = the_case(**case)
    want = value_and_gradients(reference, *operands, 0.3)
    for a, b in zip(value_and_gradients(KERNELS[kernel], *operands, 0.3), want):
        close(a, b)


def test_splash_caps_scores_as_the_reference_does():
    operands = the_case(B=1, T=128, N=2, K=1, H=8, causal=True, window=20)

    def capped(run):
        return lambda q, k, v, visibility, scale: run(q, k, v, visibility, scale, softcap=0.5)

    want = value_and_gradients(capped(reference), *operands, 0.3)
    for a, b in zip(value_and_gradients(capped(KERNELS["splash"]), *operands, 0.3), want):
        close(a, b)
    assert not np.allclose(want[0], value_and_gradients(reference, *operands, 0.3)[0], atol=1e-3)


def test_splash_serves_cross_attention_by_segments_alone():
    q, k, v = normals(1, (1, 128, 2, 8), (1, 256, 1, 8), (1, 256, 1, 8))
    q_segments, k_segments = (packed_rows(1, n, seed=5)[0] for n in (128, 256))
    visibility = Visibility(q_segments * 0, k_segments * 0, q_segments, k_segments, causal=False)
    close(KERNELS["splash"](q, k, v, visibility, 0.3), reference(q, k, v, visibility, 0.3))


CONTEXT = "fsdp:2,context:2,tensor:2"


@pytest.mark.parametrize(
    ("mesh", "heads"),
    [(CONTEXT, (4, 2)), (CONTEXT, (2, 1)), ("fsdp:2,context:4", (2, 1))],
    ids=["two key heads", "fewer key heads than devices", "one key head"],
)
def test_context_parallel_is_one_device(mesh, heads):
    check_on_mesh(mesh, attend_named("xla"), the_case(2, 32, *heads, 8, causal=True, window=11))


@pytest.mark.parametrize("causal", [True, False])
def test_splash_under_context_parallelism_is_one_device(causal):
    check_on_mesh(CONTEXT, KERNELS["splash"], the_case(2, 256, 4, 2, 8, causal=causal))


def test_flash_on_a_mesh_is_one_device():
    check_on_mesh(
        "data:2,fsdp:2,tensor:2", KERNELS["flash"], the_case(4, 128, 4, 2, 8, causal=True)
    )


def attend_named(implementation):
    return lambda q, k, v, visibility, scale: attend(
        q, k, v, visibility, scale=scale, implementation=implementation
    )


def check_on_mesh(mesh, run, operands):
    """`run` with everything spread over the mesh equals the reference on one device."""
    want = value_and_gradients(reference, *operands, 0.3)
    q, k, v, visibility = operands
    made = make_mesh(mesh)
    with jax.set_mesh(made):
        q, k, v = (
            jax.device_put(x, partition(("batch", "length", "heads", "head"), x.shape, made, RULES))
            for x in (q, k, v)
        )
        visibility = jax.device_put(
            visibility, partition(("batch", "length"), q.shape[:2], made, RULES)
        )
        for a, b in zip(value_and_gradients(run, q, k, v, visibility, 0.3), want):
            close(a, b)
