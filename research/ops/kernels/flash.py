"""Flash attention on GPU (arXiv:2307.08691): scores exist only block by block in a multiprocessor.

The kernels are JAX's in Pallas Triton (jax.experimental.pallas.ops.gpu.attention), forward and
backward. Their masks compare indices in a row instead of positions, and queries and keys share one
array of segments, so they support packed self-attention only.
"""

import functools
import warnings

import jax
import jax.numpy as jnp

from research.devices.backend import before_triton
from research.ops.kernels import visible_share as share
from research.ops.kernels.whole_rows import on_each_device, split_rows

PLATFORM = "gpu"
SOFT_CAP = False  # the kernel has none
SINKS = False  # nor these
BLOCK = 128  # the longest tile; lengths are filled up to a multiple of it
# of queries; with two keys' and two values' tiles of half as much it fits the 99 KiB of compute 8.9
TILE_BYTES = 32768
BACKWARD = 32  # tiles of the backward pass, the kernel's own choice


def refusal(q_BTNH: jax.Array, k_BSKH: jax.Array, visibility) -> str | None:
    """Why the kernel cannot serve the case and what to set, or None where it can."""
    if card := before_triton():
        return f"Triton makes no kernels for {card}; they begin with compute capability 8"
    if not visibility.packed:
        return (
            "queries and keys are not one packed row and it knows only indices; "
            "decode and cross-attend with 'xla'"
        )
    if visibility.window:
        return f"it has no window and model.window={visibility.window}"
    if reason := split_rows(q_BTNH):
        return reason
    if _row_bytes(q_BTNH) > 512:
        return (
            f"a head of {q_BTNH.shape[3]} {q_BTNH.dtype} is over 512 bytes; "
            "set config.precision.compute to bfloat16"
        )
    return None


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    visibility,
    scale: float,
    softcap: float = 0.0,
    *,
    interpret: bool = False,
) -> jax.Array:
    """`research.ops.attention.attend` by this kernel, [B, T, N, H], where `refusal` is None.
    `interpret` runs it on any device."""
    rows = functools.partial(_rows, scale=scale, causal=visibility.causal, interpret=interpret)
    return on_each_device(rows, q_BTNH, k_BSKH, v_BSKH, visibility.k_segments_BS)


def _rows(
    q_BTNH, k_BSKH, v_BSKH, segments_BS, *, scale: float, causal: bool, interpret: bool
) -> jax.Array:
    """The kernel on a device's part. It wants a key head for each query head: the group is mapped
    over, not copied."""
    with warnings.catch_warnings():  # deprecated since JAX 0.12, without a successor inside JAX
        warnings.simplefilter("ignore", DeprecationWarning)
        from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha

    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    # Filled up behind the end to whole tiles, with a segment that no token has, and cut off again.
    added = -T % BLOCK
    q_BTNH, k_BSKH, v_BSKH = (
        jnp.pad(x, ((0, 0), (0, added), (0, 0), (0, 0))) for x in (q_BTNH, k_BSKH, v_BSKH)
    )
    segments_BS = jnp.pad(segments_BS, ((0, 0), (0, added)), constant_values=-1)
    # Wide heads get shorter tiles, so that a tile has the same bytes.
    block_q = min(BLOCK, TILE_BYTES // _row_bytes(q_BTNH))
    block_k = min(BLOCK, TILE_BYTES // 2 // _row_bytes(q_BTNH))
    kernel = functools.partial(
        mha,
        sm_scale=scale,
        causal=causal,
        block_sizes=BlockSizes(block_q, block_k, BACKWARD, BACKWARD, BACKWARD, BACKWARD),
        interpret=interpret,
    )
    # The count of FLOPs cannot see which blocks the kernel skips, so their share travels in the
    # scope.
    forward, backward = (
        share.visited(T + added, T + added, *blocks, causal=causal)
        for blocks in ((block_q, block_k), (BACKWARD, BACKWARD))
    )
    with share.scope(forward=forward, backward=backward):
        # Query heads are split into G groups of their K key heads: `vmap` over G shares the keys.
        out_BTKGH = jax.vmap(kernel, in_axes=(3, None, None, None), out_axes=3)(
            q_BTNH.reshape(B, T + added, K, N // K, H), k_BSKH, v_BSKH, segments_BS
        )
    return out_BTKGH.reshape(B, T + added, N, H)[:, :T]


def _row_bytes(q_BTNH: jax.Array) -> int:
    """Bytes of one head of one token, its size padded to a power of two as the kernel does."""
    return (1 << (q_BTNH.shape[3] - 1).bit_length()) * jnp.dtype(q_BTNH.dtype).itemsize
