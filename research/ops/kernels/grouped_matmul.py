"""Grouped products: rows in groups, each multiplied by its group's matrix, as experts need.

Rows [M, I] are sorted by group; `sizes` [E] are the lengths of the groups, and rows after the last
group belong to none. `rows` multiplies them by matrices [E, I, O], and `matrices` computes the
gradient of the matrices. On TPU both are JAX's Pallas kernels, elsewhere XLA's `lax.ragged_dot`.

TPU's compiler has a kernel for `lax.ragged_dot`, but computes the gradient of the matrices densely,
over all rows for every group, so that a step of Mixtral 8x7B computes two and a half times as much.
JAX's kernels (jax.experimental.pallas.ops.tpu.megablox, after arXiv:2211.15841) visit each row once
in all three products, and skip rows without a group.
"""

import jax
import jax.numpy as jnp
from jax import lax

from research.devices.backend import platform
from research.ops.kernels.notes import warn_once

PLATFORM = "tpu"
LANES = 128  # of the vector unit: a tile is a multiple of it wide, or as wide as the array
TILE = 512  # rows of a tile
# bytes of a row of a tile; with their float32 sums two of each fit the 16 MiB that a kernel has on
# v5e
WIDE = 2048
# Rows [M, O] times the transposed matrices [E, I, O]: O is contracted, M is in groups.
_TO_ROWS = lax.RaggedDotDimensionNumbers(
    (((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
)
# [M, I] and [M, O] contracted over M, the axis in groups: one matrix for each group.
_TO_MATRICES = lax.RaggedDotDimensionNumbers(
    (((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
)


def rows(
    x_MI: jax.Array,
    w_EIO: jax.Array,
    sizes_E: jax.Array,
    *,
    transposed: bool = False,
    interpret: bool | None = None,
) -> jax.Array:
    """Rows times the matrix of their group, [M, O] in the dtype of `x`; with `transposed`, rows [M,
    O] times the transposed matrix, [M, I]. Rows without a group have arbitrary results, even NaN.

    `interpret` runs the kernel on any device; without it the platform of the mesh decides.
    """
    if not _kernel(x_MI, interpret):
        if transposed:
            return lax.ragged_dot_general(x_MI, w_EIO, sizes_E, _TO_ROWS)
        return lax.ragged_dot(x_MI, w_EIO, sizes_E)
    from jax.experimental.pallas.ops.tpu.megablox.gmm import (
        gmm,  # Pallas takes a second
    )

    # (I, O), or (O, I) for the transposed product.
    inner, outer = w_EIO.shape[:0:-1] if transposed else w_EIO.shape[1:]
    x, tile = _filled(x_MI)
    # Limits are in bytes, so that float32 rows get tiles half as wide.
    tiling = tile, *(_columns(size, WIDE // x.dtype.itemsize) for size in (inner, outer))
    y = gmm(x, w_EIO, sizes_E, x.dtype, tiling, transpose_rhs=transposed, interpret=bool(interpret))
    return y[: x_MI.shape[0]]


def matrices(
    x_MI: jax.Array,
    dy_MO: jax.Array,
    sizes_E: jax.Array,
    dtype: jnp.dtype,
    *,
    interpret: bool | None = None,
) -> jax.Array:
    """x^T dy over the rows of each group, [E, I, O], summed in float32 and rounded once to `dtype`;
    zeros for an empty group. Rows without a group do not count, whatever their values."""
    if not _kernel(x_MI, interpret):
        return lax.ragged_dot_general(
            x_MI, dy_MO, sizes_E, _TO_MATRICES, preferred_element_type=dtype
        )
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    (x, tile), (dy, _) = _filled(x_MI), _filled(dy_MO)
    # The output tile is half as wide: it is float32, and the kernel widens both input tiles too.
    wide = WIDE // x.dtype.itemsize
    tiling = tile, _columns(x.shape[1], wide), _columns(dy.shape[1], wide // 2)
    # The kernel wants its first operand transposed, [I, M].
    return tgmm(x.T, dy, sizes_E, dtype, tiling, interpret=bool(interpret))


def of_groups(y_MO: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """`y` with zeros in the rows without a group."""
    # `where` and not a product with 0, since such rows may hold NaN.
    return jnp.where((jnp.arange(y_MO.shape[0]) < jnp.sum(sizes_E))[:, None], y_MO, 0)


def refusal(dtype: jnp.dtype) -> str | None:
    """Why the kernels cannot serve rows of this type and what to set, or None where they can."""
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"{dtype} activations must be bfloat16 or float32; set config.precision.compute"
    return None


def _kernel(x: jax.Array, interpret: bool | None) -> bool:
    """Whether JAX's kernels serve the rows, for the platform of the mesh or as `interpret` says."""
    if interpret is None and platform() != PLATFORM:
        return False
    reason = refusal(x.dtype)
    if reason:
        warn_once(
            f"the experts' products on {PLATFORM} take XLA's form, whose gradient visits every row "
            f"for each: {reason}"
        )
    return reason is None


def _filled(x: jax.Array) -> tuple[jax.Array, int]:
    """`x` with rows of no group added to whole tiles, and the rows of a tile."""
    M = x.shape[0]
    # Few rows make one tile, filled up to whole lanes.
    tile = min(TILE, -(-M // LANES) * LANES)
    return (jnp.pad(x, ((0, -M % tile), (0, 0))) if M % tile else x), tile


def _columns(size: int, limit: int) -> int:
    """The widest tile up to `limit` that fills an axis evenly, or that where none does; the kernels
    mask what is over."""
    if size <= limit:
        return size
    return next((tile for tile in range(limit, LANES, -LANES) if size % tile == 0), limit)
