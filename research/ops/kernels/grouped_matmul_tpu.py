"""Grouped products on TPU: JAX's Pallas kernels megablox (after arXiv:2211.15841).

TPU's compiler has a kernel for `lax.ragged_dot`, but computes the gradient of the matrices densely,
over all rows for every group, so that a step of Mixtral 8x7B computes two and a half times as much.
These kernels visit each row once in all three products, and skip rows without a group. They tell
their cost themselves.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from research.ops.kernels import visible_share as share

PLATFORM = "tpu"
GOES_ON = True  # `rows_of_leaf`: a call may write the rows of one group into what others wrote
LANES = 128  # of the vector unit: a tile is a multiple of it wide, or as wide as the array
TILE = 512  # rows of a tile
# bytes of a row of a tile; with their float32 sums two of each fit the 16 MiB that a kernel has on
# v5e
WIDE = 2048


def refusal(case, named: bool) -> str | None:
    """Why the kernels cannot serve the case and what to set, or None where they can."""
    if case.dtype not in (jnp.bfloat16, jnp.float32):
        return f"{case.dtype} activations must be bfloat16 or float32; set config.precision.compute"
    return None


def rows(
    x_MI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array, transposed: bool, interpret: bool = False
) -> jax.Array:
    """`research.ops.kernels.grouped_matmul.rows` of an array; `interpret` runs on any device."""
    x, tile = _filled(x_MI)
    y = _gmm(x, w_EIO, sizes_E, tile, transposed, interpret)
    return y[: x_MI.shape[0]]


def rows_of_leaf(
    x_MI: jax.Array, w: Any, sizes_E: jax.Array, transposed: bool, interpret: bool = False
) -> jax.Array:
    """`rows` of a leaf [E, I, O], dense for one expert at a time: no array of all of them is made.

    Each call visits the tiles of its own expert alone, and adds its rows to those there are.
    """
    E, inner, outer = w.shape
    x, tile = _filled(x_MI)

    def _expert(y, e):
        one = jax.tree.map(lambda part: lax.dynamic_slice_in_dim(part, e, 1), w)
        # For cost estimates: the kernel tells what all rows would cost.
        with share.scope(one_of=1 / E):
            y = _gmm(x, one.dense(x.dtype), sizes_E, tile, transposed, interpret, e, y)
        return y, None

    y = jnp.zeros((x.shape[0], inner if transposed else outer), x.dtype)
    y, _ = lax.scan(_expert, y, jnp.arange(E, dtype=jnp.int32))
    return y[: x_MI.shape[0]]


def matrices(
    x_MI: jax.Array,
    dy_MO: jax.Array,
    sizes_E: jax.Array,
    dtype: jnp.dtype,
    interpret: bool = False,
) -> jax.Array:
    """`research.ops.kernels.grouped_matmul.matrices`; `interpret` runs on any device."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm  # Pallas takes a second

    (x, tile), (dy, _) = _filled(x_MI), _filled(dy_MO)
    # The output tile is half as wide: it is float32, and the kernel widens both input tiles too.
    wide = WIDE // x.dtype.itemsize
    tiling = tile, _columns(x.shape[1], wide), _columns(dy.shape[1], wide // 2)
    # The kernel wants its first operand transposed, [I, M].
    return tgmm(x.T, dy, sizes_E, dtype, tiling, interpret=interpret)


def _gmm(x_MI, w_EIO, sizes_E, tile, transposed, interpret, first=None, existing_MO=None):
    """The kernel for whole tiles of rows; the matrices are those of groups from `first` on, and
    rows of other groups are `existing`'s."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

    # (I, O), or (O, I) for the transposed product.
    sizes = w_EIO.shape[:0:-1] if transposed else w_EIO.shape[1:]
    # Limits are in bytes, so that float32 rows get tiles half as wide.
    tiling = tile, *(_columns(size, WIDE // x_MI.dtype.itemsize) for size in sizes)
    return gmm(
        x_MI,
        w_EIO,
        sizes_E,
        x_MI.dtype,
        tiling,
        first,
        existing_MO,
        transpose_rhs=transposed,
        interpret=interpret,
    )


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
