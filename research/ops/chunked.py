"""Attention in XLA for a block of queries after the other, in memory that grows with length alone.

The scores of a block exist while it is computed, forward and again backward (arXiv:2112.05682). It
serves long rows on accelerators where no kernel does: scores with a bias, cross-attention or a
window on a GPU, a prefix. Nobody has timed it. On a CPU `research.ops.blocked` and the reference
keep their order of sums.

Letters: B batch, T query time, S key time, N query heads, K key heads, H head size; n blocks of t
queries each.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp

from research.devices.backend import platform
from research.ops.distance import DistanceBias
from research.parallel.placement import merge_axes, split_axis

BLOCK = 256  # queries whose scores exist at a time
SHORT = 1024 * 1024  # pairs of a query and a key up to which a row's scores may exist at once
RANGES = 8  # parts of a causal row with a range of keys each: 9/16 of all pairs are multiplied
NOBODY = -2  # the segment of queries behind the end: no key has it


def serves(T: int, S: int, split: bool) -> bool:
    """Whether rows of T queries and S keys go by blocks; `split` is true where a mesh splits T."""
    return platform() != "cpu" and not split and T * S > SHORT


def attend(
    reference: Callable[..., jax.Array],
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    visibility,
    scale: float,
    bias: jax.Array | DistanceBias | None,
    softcap: float,
    sinks_N: jax.Array | None = None,
) -> jax.Array:
    """`reference`, that of `research.ops.attention`, [B, T, N, H], by blocks."""
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    added = -T % BLOCK
    q_BTNH = jnp.pad(q_BTNH, ((0, 0), (0, added), (0, 0), (0, 0)))
    numbers = _of_queries(visibility, added)
    if isinstance(bias, DistanceBias):
        bias = bias.filled(added)
    elif bias is not None:
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, added), (0, 0)))
    # Their gradients are sums over blocks, in the type in which they enter the loop.
    k_BSKH, v_BSKH = (x.astype(jnp.float32) for x in (k_BSKH, v_BSKH))
    outs = []
    for queries, keys in _ranges(visibility, T + added, S):

        def _block(part, keys=keys):
            # Bound to the queries, masks and offsets are made with them. JAX computes what is the
            # same in all layers of a scan once before it, and keeps it: all pairs of a row.
            q_BtNH, positions_Bt, segments_Bt, *block, first = jax.lax.optimization_barrier(part)
            seen = replace(
                visibility,
                q_positions_BT=positions_Bt,
                q_segments_BT=segments_Bt,
                k_positions_BS=visibility.k_positions_BS[:, keys],
                k_segments_BS=visibility.k_segments_BS[:, keys],
                blocks=tuple(block) or None,
            )
            k_BsKH, v_BsKH = (x[:, keys].astype(q_BtNH.dtype) for x in (k_BSKH, v_BSKH))
            offsets = _offsets(bias, first, keys)
            return reference(q_BtNH, k_BsKH, v_BsKH, seen, scale, offsets, softcap, sinks_N)

        count = (queries.stop - queries.start) // BLOCK
        parts = tuple(
            jnp.moveaxis(split_axis(x[:, queries], 1, count), 1, 0) for x in (q_BTNH, *numbers)
        )
        firsts_n = queries.start + BLOCK * jnp.arange(count)
        out_nBtNH = jax.lax.map(jax.checkpoint(_block), (*parts, firsts_n))
        outs.append(merge_axes(jnp.moveaxis(out_nBtNH, 0, 1), 1))
    return jnp.concatenate(outs, axis=1)[:, :T]


def _of_queries(visibility, added: int) -> tuple[jax.Array, ...]:
    """The positions, the segments and, where there are some, the blocks of queries, with so many
    behind the end that nobody is."""

    def _padded(x_BT: jax.Array, filling: int = 0) -> jax.Array:
        return jnp.pad(x_BT, ((0, 0), (0, added)), constant_values=filling)

    segments_BT = _padded(visibility.q_segments_BT, NOBODY)
    blocks = tuple(map(_padded, visibility.blocks or ()))
    return _padded(visibility.q_positions_BT), segments_BT, *blocks


def _ranges(visibility, T: int, S: int) -> Iterator[tuple[slice, slice]]:
    """Parts of T queries, a multiple of BLOCK, and the keys that each of them may see."""
    # Indices of keys tell their positions in packed rows alone.
    if not (visibility.packed and visibility.causal) or visibility.blocks is not None:
        yield slice(0, T), slice(0, S)
        return
    size = -(-T // (BLOCK * RANGES)) * BLOCK
    for start in range(0, T, size):
        stop = min(start + size, T)
        first = max(0, start - visibility.window + 1) if visibility.window else 0
        yield slice(start, stop), slice(first, min(stop, S))


def _offsets(bias, first: jax.Array, keys: slice) -> jax.Array | None:
    """The offsets [B or 1, N, t, s] of a block's scores."""
    if bias is None:
        return None
    if isinstance(bias, DistanceBias):
        return bias.block(first, BLOCK, keys)
    return jax.lax.dynamic_slice_in_dim(bias, first, BLOCK, axis=2)[..., keys]
