"""Moments in eight bits, in blocks of up to 256 values that share a scale (arXiv:2110.02861).

A block lies inside one layer. It covers the last axes of a parameter, and of the axis before them
as many entries as divide it and keep the block within 256 values: three heads of 64, one row of
192. Codes have the parameter's shape and sharding, so the optimizer state is sharded like the
parameters.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from research.ops.lookup import look_up, reciprocal
from research.parallel.placement import gather_axis, spec_entries, split_axis

BLOCK = 256  # values that share a scale, as in bitsandbytes
# A parameter with fewer values in a layer keeps float32 moments, as in bitsandbytes.
SMALLEST = 4096
# So does one whose blocks would have fewer values: their scales would cost more than codes save.
_LEAST_BLOCK = 32


class Moment(NamedTuple):
    """A moment in 8 bits, map[codes] * absmax: `codes` uint8 in the parameter's shape, `absmax`
    float32 [..., blocks]."""

    codes: jax.Array
    absmax: jax.Array


def block_of(shape: Sequence[int], stacked: int = 0) -> tuple[int, int] | None:
    """(axis, entries): a block is that many entries of the axis, with everything after the axis.
    None for parameters whose moments stay in float32. The first `stacked` axes are layers or
    experts.

    >>> block_of((30, 576, 9, 64), 1), block_of((576, 1536)), block_of((30, 576), 1)
    ((2, 3), (1, 256), None)
    """
    if math.prod(shape[stacked:]) < SMALLEST:
        return None
    # From the last axis inwards, whole axes are taken as long as they fit into a block.
    axis, inner = len(shape) - 1, 1
    while axis > stacked and inner * shape[axis] <= BLOCK:
        inner, axis = inner * shape[axis], axis - 1
    # A divisor, so that no block crosses into the next row of the axis before.
    entries = max(n for n in range(1, BLOCK // inner + 1) if shape[axis] % n == 0)
    return (axis, entries) if inner * entries >= _LEAST_BLOCK else None


def quantize(x: jax.Array, block: tuple[int, int], book: np.ndarray) -> Moment:
    """`x` in 8 bits: each value becomes the code of the nearest entry of `book`, after division by
    the largest magnitude of its block.

    With the unsigned map (second moments) a positive value never becomes zero: a second moment of 0
    beside a first moment that is not 0 would give a step of size 1 / eps.
    """
    groups = _grouped(x, block)
    absmax = jnp.max(jnp.abs(groups), axis=tuple(range(block[0] + 1, groups.ndim)), keepdims=True)
    scaled = groups * reciprocal(absmax)
    codes = _nearest(scaled, book)
    # The unsigned map begins at 0, the signed one at its most negative value.
    if book[0] == 0:
        codes = jnp.where((codes == 0) & (groups > 0), 1, codes)
    absmax = jnp.squeeze(absmax, tuple(range(block[0] + 1, absmax.ndim)))
    return Moment(_ungrouped(codes.astype(jnp.uint8), block, x), absmax)


def dequantize(moment: Moment, block: tuple[int, int], book: np.ndarray) -> jax.Array:
    """The values of a moment, float32 in the parameter's shape."""
    codes = _grouped(moment.codes, block)
    absmax = jnp.expand_dims(moment.absmax, tuple(range(moment.absmax.ndim, codes.ndim)))
    return _ungrouped(look_up(book, codes) * absmax, block, moment.codes)


def _nearest(x: jax.Array, book: np.ndarray) -> jax.Array:
    """The code of the nearest entry: the number of midpoints of the map strictly below each value,
    by a binary search over its 256 entries."""
    middles = (book[1:] + book[:-1]) / np.float32(2)
    # The first midpoint is the same for all: looked up for each value, it would be a constant as
    # large as `x`, which compilers compute.
    codes = 128 * (x > middles[127]).astype(jnp.int32)
    for half in (64, 32, 16, 8, 4, 2, 1):
        codes += half * (x > look_up(middles, codes + (half - 1)))
    return codes


def zeros(p: jax.Array, block: tuple[int, int] | None) -> Any:
    """The moment of a parameter before the first step."""
    if block is None:
        return jnp.zeros_like(p, jnp.float32)
    # Code 0 of a map need not be 0, but times an absmax of 0 it is.
    codes = jnp.zeros_like(p, jnp.uint8)
    # Zeros in the shape and sharding of the scales. The barrier keeps the compiler from spending
    # seconds on folding the maxima of a constant.
    groups = _grouped(jax.lax.optimization_barrier(codes), block)
    return Moment(
        codes, jnp.max(groups, axis=tuple(range(block[0] + 1, groups.ndim))).astype(jnp.float32)
    )


def _grouped(x: jax.Array, block: tuple[int, int]) -> jax.Array:
    """`x` [..., A, ...] as [..., A / entries, entries, ...], gathered along A if a shard boundary
    would cut a block."""
    axis, entries = block
    parts = x.shape[axis] // entries
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        # Devices that split this axis must hold whole blocks, or a scale would need its
        # neighbour's values.
        names = spec_entries(x)[axis] or ()
        shards = math.prod(
            mesh.shape[name] for name in ((names,) if isinstance(names, str) else names)
        )
        x = x if parts % shards == 0 else gather_axis(x, axis)
    return split_axis(x, axis, parts)


def _ungrouped(groups: jax.Array, block: tuple[int, int], like: jax.Array) -> jax.Array:
    """The inverse of `_grouped`, in the shape and sharding of `like`."""
    if jax.sharding.get_abstract_mesh().empty:
        return groups.reshape(like.shape)
    entries = spec_entries(groups)
    merged = PartitionSpec(*entries[: block[0] + 1], *entries[block[0] + 2 :])
    return jax.reshard(
        jnp.reshape(groups, like.shape, out_sharding=merged), PartitionSpec(*spec_entries(like))
    )
