"""Grouped products on Hopper cards: JAX's kernels in Pallas Mosaic GPU.

Measured on one H100, 8,192 rows in 8 uneven groups, bfloat16, 4,096 x 14,336: the product takes
1.71 ms (561 TFLOP/s) with the tiles below and equals XLA's to the bit; XLA's form takes 9.40 ms, a
dense product of the same FLOPs 1.57. The gradient of the rows is the same call with the matrices
transposed by a copy, into which XLA fuses the cast of float32 weights. XLA's gradient of the
matrices takes 10.3 ms; JAX's kernel for it was not timed, and serves by name alone. On Blackwell
nothing was timed, and this kernel does not run there.
"""

import functools
import importlib.util
from types import SimpleNamespace

import jax
import jax.numpy as jnp

from research.devices.backend import card_capability, card_kind
from research.devices.table import DEVICES
from research.ops.kernels import visible_share as share
from research.ops.kernels.groups import of_groups

PLATFORM = "gpu"
GOES_ON = False
ROWS, COLUMNS, INNER = 192, 128, 64  # of a tile of the product; the shared axis is cut into INNER
# Of the gradient of the matrices, where I and O take the place of rows and columns.
INPUTS, OUTPUTS, GRADIENT_ROWS = 128, 128, 64
STEPS = 4  # tiles in flight
WIDTH = 8  # tiles of columns that neighbours in time share
# The least rows that were reasoned to gain. Every group may begin within a tile, so the kernel
# multiplies up to ROWS (E - 1) more rows, and XLA's form M E: at the rates above they meet between
# 300 rows, for 8 groups, and 520, for 2. Fewer rows read all matrices in any case.
FEW = 1024
_MODULES = [f"jax.experimental.pallas.ops.gpu.{n}ragged_dot_mgpu" for n in ("", "transposed_")]


def refusal(case, named: bool) -> str | None:
    """Why the kernels cannot serve the case and what to set, or None where they can. Those that
    were not timed serve only if `named`."""
    capability = card_capability()
    if capability is None or capability[0] != 9:
        return f"{card_kind() or 'the card'} is not of Hopper"
    if not _installed():
        return f"JAX {jax.__version__} has no ragged_dot_mgpu; install '.[cuda]'"
    if case.dtype != jnp.bfloat16:
        return f"{case.dtype} activations must be bfloat16; set config.precision.compute"
    wanted = (INPUTS, OUTPUTS) if case.gradient else (INNER, COLUMNS)
    if case.I % wanted[0] or case.O % wanted[1]:
        return f"matrices of {case.I} x {case.O} must be multiples of {wanted[0]} x {wanted[1]}"
    if named:
        return None
    if case.gradient:
        return "it was not timed; config.execution.experts='mosaic' takes it"
    if case.M < FEW:
        return f"{case.M} rows are under {FEW}, where it was not timed"
    return None


def rows(x_MI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array, transposed: bool) -> jax.Array:
    """`research.ops.kernels.grouped_matmul.rows` of an array."""
    from jax.experimental.pallas.ops.gpu.ragged_dot_mgpu import ragged_dot

    # The kernel can read matrices transposed, which was not timed.
    w = jnp.swapaxes(w_EIO, 1, 2) if transposed else w_EIO
    with share.scope(grouped=_filled(x_MI, sizes_E, ROWS)), jax.named_scope("grouped_rows"):
        return ragged_dot(
            x_MI,
            w,
            group_sizes=sizes_E,
            block_m=ROWS,
            block_n=COLUMNS,
            block_k=INNER,
            max_concurrent_steps=STEPS,
            grid_block_n=WIDTH,
        )


def matrices(x_MI: jax.Array, dy_MO: jax.Array, sizes_E: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`research.ops.kernels.grouped_matmul.matrices`; the kernel rounds the sums to the dtype of
    `x` first."""
    from jax.experimental.pallas.ops.gpu import transposed_ragged_dot_mgpu as module

    if jax.default_backend() != "gpu":
        module.jax = _jax_of_the_card()
    # The kernel masks by a product with 0, which leaves the NaN that rows without a group may hold.
    x_MI, dy_MO = of_groups(x_MI, sizes_E), of_groups(dy_MO, sizes_E)
    filled = _filled(x_MI, sizes_E, GRADIENT_ROWS)
    with share.scope(grouped=filled), jax.named_scope("grouped_matrices"):
        dw = module.transposed_ragged_dot(
            x_MI,
            dy_MO,
            group_sizes=sizes_E,
            block_m=INPUTS,
            block_n=OUTPUTS,
            block_k=GRADIENT_ROWS,
            max_concurrent_steps=STEPS,
            grid_block_n=WIDTH,
        )
    return dw.astype(dtype)


def _filled(x_MI: jax.Array, sizes_E: jax.Array, tile: int) -> float:
    """Rows of all tiles over the rows there are. A tile that groups share is visited for each."""
    M, E = x_MI.shape[0], sizes_E.shape[0]
    return (-(-M // tile) + E - 1) * tile / M


def _jax_of_the_card() -> SimpleNamespace:
    """JAX as the kernel's module names it, with the mesh's card as its first device: the kernel
    asks that for its multiprocessors, and programs are compiled for cards that are not here."""
    device = DEVICES[card_kind()]
    card = SimpleNamespace(core_count=device.processors.cores)
    return SimpleNamespace(**{**vars(jax), "devices": lambda: [card]})


@functools.cache
def _installed() -> bool:
    """Whether this JAX has the kernels."""
    return all(importlib.util.find_spec(name) for name in _MODULES)
