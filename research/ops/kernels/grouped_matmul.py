"""Grouped products: rows in groups, each multiplied by its group's matrix, as experts need.

Rows [M, I] are sorted by group; `sizes` [E] are the lengths of the groups, and rows after the last
group belong to none. `rows` multiplies them by matrices [E, I, O], and `matrices` computes the
gradient of the matrices. A kernel of an ordered list does it where one serves the device and the
case, elsewhere XLA's `lax.ragged_dot`, which multiplies every row by every group's matrix.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from research.devices.backend import card_capability, card_kind, platform
from research.ops.kernels import grouped_matmul_gpu, grouped_matmul_tpu
from research.ops.kernels.notes import CannotServe, tell_once, warn_once

KERNELS = {"mosaic": grouped_matmul_gpu, "megablox": grouped_matmul_tpu}
IMPLEMENTATIONS = ("auto", *KERNELS, "xla")
# What "auto" tries in order: platform, major compute capability or None for any, names.
ORDER: list[tuple[str, int | None, tuple[str, ...]]] = [
    ("tpu", None, ("megablox",)),
    ("gpu", 9, ("mosaic",)),
]
# Rows [M, O] times the transposed matrices [E, I, O]: O is contracted, M is in groups.
_TO_ROWS = lax.RaggedDotDimensionNumbers(
    (((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
)
# [M, I] and [M, O] contracted over M, the axis in groups: one matrix for each group.
_TO_MATRICES = lax.RaggedDotDimensionNumbers(
    (((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
)


@dataclass(frozen=True)
class Case:
    """What a kernel is asked for: M rows in `dtype`, in E groups, and matrices [I, O]. `gradient`
    is True for the gradient of the matrices; for the gradient of the rows I and O are exchanged.
    """

    M: int
    E: int
    I: int
    O: int
    dtype: jnp.dtype
    gradient: bool = False

    def __str__(self):
        return "the experts' gradients" if self.gradient else "the experts' products"


def rows(
    x_MI: jax.Array,
    w: Any,
    sizes_E: jax.Array,
    *,
    transposed: bool = False,
    implementation: str = "auto",
) -> jax.Array:
    """Rows times the matrix of their group, [M, O] in the dtype of `x`; with `transposed`, rows [M,
    O] times the transposed matrix, [M, I]. Rows without a group have arbitrary results, even NaN.

    `w` is an array [E, I, O] in the dtype of `x`, or a leaf of that shape whose arrays all have E
    in front. A leaf is made dense one expert at a time where the kernel can go on from what it did
    for other groups, else all experts of this one weight at a time.
    """
    E, *inner = w.shape
    contracted, outer = reversed(inner) if transposed else inner
    case = Case(x_MI.shape[0], E, contracted, outer, x_MI.dtype)
    kernel, leaf = choose(implementation, case), not isinstance(w, jax.Array)
    if kernel is not None and leaf and kernel.GOES_ON:
        return kernel.rows_of_leaf(x_MI, w, sizes_E, transposed)
    w_EIO = w.dense(x_MI.dtype) if leaf else w
    if kernel is not None:
        return kernel.rows(x_MI, w_EIO, sizes_E, transposed)
    if transposed:
        return lax.ragged_dot_general(x_MI, w_EIO, sizes_E, _TO_ROWS)
    return lax.ragged_dot(x_MI, w_EIO, sizes_E)


def matrices(
    x_MI: jax.Array,
    dy_MO: jax.Array,
    sizes_E: jax.Array,
    dtype: jnp.dtype,
    *,
    implementation: str = "auto",
) -> jax.Array:
    """x^T dy over the rows of each group, [E, I, O], summed in float32 and rounded once to `dtype`;
    zeros for an empty group. Rows without a group do not count, whatever their values."""
    (M, inputs), outputs = x_MI.shape, dy_MO.shape[1]
    case = Case(M, sizes_E.shape[0], inputs, outputs, x_MI.dtype, gradient=True)
    kernel = choose(implementation, case)
    if kernel is not None:
        return kernel.matrices(x_MI, dy_MO, sizes_E, dtype)
    return lax.ragged_dot_general(x_MI, dy_MO, sizes_E, _TO_MATRICES, preferred_element_type=dtype)


def choose(implementation: str, case: Case) -> Any | None:
    """The kernels' module that serves the case, or None for XLA's form.

    "auto" takes the first of `ORDER` for the mesh's devices that does not refuse, and on a GPU says
    once which. The name of a kernel raises `CannotServe` with the reason instead, also on a
    mesh of another platform than its own; without a mesh it is taken at its word, so that a program
    can be lowered for a device that is not here.
    """
    if implementation == "xla":
        return None
    if implementation == "auto":
        return _first(case)
    kernel, at = KERNELS[implementation], platform()
    reason = kernel.refusal(case, named=True)
    if at != kernel.PLATFORM and not jax.sharding.get_abstract_mesh().empty:
        reason = f"the mesh is of {at} devices and it wants {kernel.PLATFORM}"
    if reason:
        raise CannotServe(
            f"experts {implementation!r} cannot serve this case: {reason}; "
            "or set config.execution.experts to 'auto' or 'xla'"
        )
    return kernel


def _first(case: Case) -> Any | None:
    """The first kernel in order that serves the case, told once on a GPU."""
    at, refusals = platform(), []
    capability = card_capability() if at == "gpu" else None
    for where, major, names in ORDER:
        if where != at or (major is not None and (capability is None or major != capability[0])):
            continue
        for name in names:
            reason = KERNELS[name].refusal(case, named=False)
            if reason is None:
                if at == "gpu":
                    tell_once(f"{case} on {card_kind() or at}: {name}")
                return KERNELS[name]
            refusals.append(f"not {name}: {reason}")
    if refusals:
        warn_once(
            f"{case} on {at} take XLA's form, which multiplies every row by each of {case.E} "
            "experts: " + "; ".join(refusals)
        )
    return None
