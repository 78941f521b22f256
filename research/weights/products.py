"""Products with a quantized weight, a `research.weights.quantized.Quantized`, whose backward pass
keeps its codes and scales and no dense weight."""

from functools import partial
from typing import Any

import jax
from jax.sharding import PartitionSpec

from research.ops.einsum import contract
from research.ops.kernels import grouped_matmul, quantized_matmul
from research.ops.kernels.equation import parse
from research.ops.kernels.groups import of_groups
from research.parallel.placement import reshard_to
from research.weights.formats import stored_format


# A rule of its own for the backward pass: autodiff would keep the dense weight of every layer
# until then, which is the memory that quantizing was to save. It is decoded a second time
# instead.
@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(eqn: str, place: PartitionSpec | None, x: jax.Array, w: Any) -> jax.Array:
    """`eqn` of activations and the weight, in the dtype of `x`. The gradient of `x` is placed as
    `place`, that of the weight is none."""
    # Kernels and dense products take plain float32 scales and unsplit storage axes.
    w, y = w.gathered(), None
    if stored_format(w.format).has_kernel:  # decodes tile by tile, where the platform has one
        y = quantized_matmul.product(eqn, x, w.codes, w.scale, stored_format(w.format).book)
    return contract(eqn, x, w.dense(x.dtype)) if y is None else y


def _forward(eqn: str, place: PartitionSpec | None, x: jax.Array, w: Any):
    return product(eqn, place, x, w), w


def _backward(eqn: str, place: PartitionSpec | None, w: Any, dy: jax.Array):
    # The residual is the leaf as it is stored, still split over devices; it is gathered again
    # here.
    w, dx = w.gathered(), None
    if stored_format(w.format).has_kernel:
        dx = quantized_matmul.pullback(
            eqn, dy, w.codes, w.scale, w.inputs, stored_format(w.format).book
        )
    if dx is None:
        dx = contract(parse(eqn).to_x, dy, w.dense(dy.dtype))
    # The activations' gradient goes back to their sharding; frozen codes have none.
    return reshard_to(dx, place), None


product.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def grouped(implementation: str, x: jax.Array, sizes: jax.Array, w: Any) -> jax.Array:
    """Rows [M, I] in groups of `sizes` [E], each times its expert in a weight [E, I, O]: [M, O]."""
    return grouped_matmul.rows(x, w, sizes, implementation=implementation)


def _grouped_forward(implementation: str, x: jax.Array, sizes: jax.Array, w: Any):
    return grouped(implementation, x, sizes, w), (sizes, w)


def _grouped_backward(implementation: str, saved: tuple[jax.Array, Any], dy: jax.Array):
    sizes, w = saved
    # The gradient of an expert's rows is dy W^T, in the same groups. The sizes are integers and
    # the codes frozen: neither has a gradient.
    dx = grouped_matmul.rows(dy, w, sizes, transposed=True, implementation=implementation)
    return of_groups(dx, sizes), None, None


grouped.defvjp(_grouped_forward, _grouped_backward)
