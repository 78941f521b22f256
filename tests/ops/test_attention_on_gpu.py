"""What the GPU kernels for attention are given: first keys instead of masks, lengths and windows.
The kernels themselves run on cards alone."""

import re
from functools import partial

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
        def loss(*qkv):
            return jnp.sum(jnp.sin(function(*qkv, seen, *given, **named)))

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(q, k, v)

    got = both(cudnn.attend, 1.0, implementation="xla")
    want = both(attention.reference, 1.0)
    # Float32 sums in another order, of values of order 1, and of order 100 where the shift is.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-3), got, want)


def by_list(q, k, v, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale, mask_type, **named):
    """Attention of the documents of one row, which lie where a list says: what JAX's private
    function does by cuDNN, whose arguments these are."""
    assert len(q) == 1, "with two rows cuDNN's packed call is silently wrong up to JAX 0.11.2"
    edges, sizes = q_offsets[0], q_seqlen[0]
    assert q_offsets is kv_offsets and q_seqlen is kv_seqlen and edges.size == sizes.size + 1
    at = jnp.arange(q.shape[1])[None]
    slot = jnp.sum(at[0, :, None] >= edges[None, :-1], axis=1)[None]
    window = named["sliding_window_length"] or 0
    seen = Visibility(at, at, slot, slot, causal=True, window=window, packed=True)
    return attention.reference(q, k, v, seen, scale)


# Documents that end on and off a tile and that are of one token, a row without padding, a row of
# padding alone.
ROWS = {128: [[64, 1, 40, 20], [128], [], [127]], 100: [[99, 1], [5, 5], [64, 36], []]}


@pytest.mark.parametrize(("T", "window"), [(128, 0), (100, 0), (100, 1), (100, 30), (100, 1000)])
def test_packed_rows_joined_into_one_are_attended_as_the_reference_does(T, window):
    positions, segments = packed(ROWS[T], T)
    seen = Visibility(positions, positions, segments, segments, True, window, True, documents=4)
    q, k, v = (
        jax.random.normal(jax.random.key(n), (4, T, heads, 8)) for n, heads in enumerate((4, 2, 2))
    )
    q, k = q.at[..., 0].set(-120.0), k.at[..., 0].set(1.0)
    real = segments[..., None, None] > 0

    def both(function, *given, **named):
        def loss(*qkv):
            return jnp.sum(jnp.where(real, jnp.sin(function(*qkv, seen, *given, **named)), 0))

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(q, k, v)

    got = both(cudnn.attend, 1.0, implementation=by_list)
    want = both(attention.reference, 1.0)
    # As above: float32 sums in another order, of order 100 where the shift is.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-3), got, want)


def test_more_documents_than_were_promised_are_seen():
    """They would attend to each other, silently."""
    positions, segments = packed([[5, 5, 6], [8]], 16)
    seen = Visibility(positions, positions, segments, segments, True, 0, True, documents=1)
    x = jnp.ones((2, 16, 1, 8))
    attend = partial(cudnn.attend, scale=1.0, implementation=by_list)
    assert jnp.isnan(jax.jit(attend)(x, x, x, seen)).all()


def test_cudnn_is_called_for_packed_rows_joined_into_one(monkeypatch):
    """Its packed call for two rows or more is silently wrong up to JAX 0.11.2: outputs off by half,
    gradients NaN. What a card would be given, forward and backward, is one row."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    positions, segments = packed([[40, 24], [64], [10, 20, 30]], 64)
    q, k = jnp.ones((3, 64, 4, 64), jnp.bfloat16), jnp.ones((3, 64, 2, 64), jnp.bfloat16)

    def loss(q, k, v, window):
        named = dict(causal=True, window=window, packed=True, documents=3)
        seen = Visibility(positions, positions, segments, segments, **named)
        return jnp.sum(cudnn.attend(q, k, v, seen, 0.1).astype(jnp.float32))

    for window in (0, 16):
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), static_argnums=3)
        text = gradient.trace(q, k, k, window).lower(lowering_platforms=("cuda",)).as_text()
        calls = [line for line in text.splitlines() if "__cudnn$fmha" in line]
        assert ["Backward" in line for line in calls] == [False, True]
        for line in calls:
            # 3 rows of 64 tokens, filled up to whole tiles, in room for 9 documents.
            assert "tensor<1x256x4x64xbf16>, tensor<1x256x2x64xbf16>" in line
            assert re.search(r"tensor<1x9xi32>, tensor<1x9xi32>, tensor<1x10xi32>", line), line
            assert "PADDING_CAUSAL" in line
            assert not window or re.search(rf"sliding_window_length\W*22: {window}\b", line), line
