"""What the GPU kernels for attention are given: first keys instead of masks, lengths and windows.
The kernels themselves run on cards alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.ops import attention
from research.ops.attention import Visibility
from research.ops.kernels import cudnn, mosaic


def packed(lengths: list[list[int]], T: int) -> tuple[jax.Array, jax.Array]:
    """Positions and segments [B, T] of rows with documents of these lengths and padding behind."""
    positions, segments = np.zeros((2, len(lengths), T), np.int32)
    for row, sizes in enumerate(lengths):
        at = 0
        for number, size in enumerate(sizes, 1):
            positions[row, at : at + size] = np.arange(size)
            segments[row, at : at + size] = number
            at += size
        positions[row, at:] = np.arange(T - at)
    return jnp.asarray(positions), jnp.asarray(segments)


@pytest.mark.parametrize("window", [0, 1, 5, 100])
def test_first_keys_and_causality_are_the_mask_of_packed_rows(window):
    # Documents that end on and off a tile, of one token, and a row of padding alone.
    positions, segments = packed([[8, 8, 1, 7], [13], [], [24]], 24)
    seen = Visibility(positions, positions, segments, segments, True, window, packed=True)
    first, keys = mosaic.first_keys(segments, window), np.arange(24)
    told = (keys >= np.asarray(first)[:, :, None]) & (keys <= keys[:, None])
    np.testing.assert_array_equal(told, seen.mask_BTS())


@pytest.mark.parametrize("T", [128, 100, 1])
@pytest.mark.parametrize(("causal", "window"), [(True, 0), (True, 1), (True, 1000), (False, 0)])
def test_one_document_a_row_is_attended_as_the_reference_does(T, causal, window):
    positions, segments = packed([[T], [T]], T)
    seen = Visibility(positions, positions, segments, segments, causal, window, True, single=True)
    q, k, v = (
        jax.random.normal(jax.random.key(n), (2, T, heads, 16)) for n, heads in enumerate((4, 2, 2))
    )
    # XLA's form of JAX's own function: cuDNN is on cards alone. The shift is one that overflowed
    # cuDNN's gradients where a mask was given.
    q = q.at[..., 0].set(-120.0)
    k = k.at[..., 0].set(1.0)

    def both(function, *given, **named):
        return jax.value_and_grad(
            lambda *qkv: jnp.sum(jnp.sin(function(*qkv, seen, *given, **named))), argnums=(0, 1, 2)
        )(q, k, v)

    got = both(cudnn.attend, 1.0, implementation="xla")
    want = both(attention.reference, 1.0)
    # Float32 sums in another order, of values of order 1, and of order 100 where the shift is.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-3), got, want)
