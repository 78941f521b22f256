"""Grouped products of activations and weights: rows in groups, each group times an expert's matrix.

Letters: M rows, E experts, I inputs and O outputs of a matrix.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from research.ops.kernels import grouped_matmul
from research.ops.kernels.groups import of_groups
from research.parallel.collectives import sum_to_place
from research.parallel.placement import gather, join_parts


def grouped(
    x_MI: jax.Array,
    w: Any,
    sizes_E: jax.Array,
    stored: Sequence[tuple[str, ...]] = (),
    implementation: str = "auto",
) -> jax.Array:
    """Rows [M, I] in consecutive groups of `sizes` [E], each multiplied by its expert's matrix in
    `w` [E, I, O]: [M, O].

    Rows after the last group have unspecified results and zero gradients. `w` is a leaf, or an
    array, cast to the dtype of `x`. Inside `shard_map` an array is a device's shard, gathered over
    the mesh axes in `stored`, one tuple a dimension. `implementation` is one of
    `research.ops.kernels.grouped_matmul.IMPLEMENTATIONS`.
    """
    if not isinstance(w, jax.Array):
        return w.grouped(x_MI, sizes_E, implementation)
    return _groups(tuple(stored), implementation, x_MI, w, sizes_E)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _groups(
    stored: Sequence[tuple[str, ...]],
    implementation: str,
    x_MI: jax.Array,
    w_EIO: jax.Array,
    sizes_E: jax.Array,
) -> jax.Array:
    w_EIO = join_parts(w_EIO.astype(x_MI.dtype), stored)
    return grouped_matmul.rows(x_MI, w_EIO, sizes_E, implementation=implementation)


def _groups_forward(stored, implementation, x_MI, w_EIO, sizes_E):
    return _groups(stored, implementation, x_MI, w_EIO, sizes_E), (x_MI, w_EIO, sizes_E)


def _groups_backward(
    stored: Sequence[tuple[str, ...]],
    implementation: str,
    saved: tuple[jax.Array, ...],
    dy_MO: jax.Array,
):
    """The gradients by rows and matrices, in their types; one collective sums that of the matrices
    and scatters it over the axes that store them."""
    x_MI, w_EIO, sizes_E = saved
    dx_MI = grouped_matmul.rows(
        dy_MO,
        join_parts(w_EIO.astype(x_MI.dtype), stored),
        sizes_E,
        transposed=True,
        implementation=implementation,
    )
    dw_EIO = grouped_matmul.matrices(
        x_MI, dy_MO, sizes_E, w_EIO.dtype, implementation=implementation
    )
    summed = {name for names in stored for name in names}
    if stored and not stored[0] and dw_EIO.shape[0] == 1:
        # As a matrix: TPU's compiler turns a scatter behind an axis of size 1 into an all-reduce,
        # which moves twice the bytes.
        dw_EIO = sum_to_place(dw_EIO[0], stored[1:], summed)[None]
    else:
        dw_EIO = sum_to_place(dw_EIO, stored, summed)
    return of_groups(dx_MI, sizes_E), dw_EIO, None


_groups.defvjp(_groups_forward, _groups_backward)


def biased(
    product: Callable[..., jax.Array], bias_EO: jax.Array, x_MI: jax.Array, sizes_E: jax.Array
) -> jax.Array:
    """`product(x, sizes_E=sizes)` [M, O] plus the bias of each row's group, in the dtype of `x`.
    Rows after the last group have the last one's, and no gradient reaches it from them."""
    groups_M = jnp.repeat(jnp.arange(bias_EO.shape[0]), sizes_E, total_repeat_length=x_MI.shape[0])
    # Zeros for what belongs to no group: it may be NaN, whose gradient is NaN even where it counts
    # for nothing.
    y_MO = of_groups(product(x_MI, sizes_E=sizes_E), sizes_E)
    # In float32, as `research.ops.einsum.add_bias`.
    return (y_MO.astype(jnp.float32) + bias_EO[groups_M]).astype(y_MO.dtype)


def gathered(w: Any, dtype: jnp.dtype) -> Any:
    """A weight for products inside `shard_map`: gathered over the mesh axes that only split its
    storage; an array also cast to `dtype`."""
    return gather(w.astype(dtype)) if isinstance(w, jax.Array) else w.gathered()
