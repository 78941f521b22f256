"""The quantized product of few rows on GPU: tiles of codes are widened in registers, on their way
to the tensor cores.

A program of the Triton backend makes one tile of the result and walks what is summed. It sees the
inputs' axis as [N, nibbles, S, rows]: N groups, the nibbles of packed codes, and what rows of a
group are taken at once. There is no need for groups to be whole in a tile, nor for more of x than
the columns that a nibble multiplies.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from research.devices.backend import before_triton
from research.ops.kernels.codes import codes_per_byte, cost, decode

PLATFORM = "gpu"
TOKENS = 16  # tokens a tile: where there are more, XLA's dense form is faster
COLUMNS = 128  # outputs a tile at most
ROWS = 64  # rows of codes a tile at most
LEAST = 16  # of any axis of a tile: the tensor cores' own
# Rows of activations, (least, most), at which the kernel beats XLA's dense form. One H100, a weight
# [4096, 14336] and bfloat16, microseconds of kernel / dense form, some 60 of each for the call:
#   rows             1        16       512      4,096
#   8-bit codes   187/258  148/237   560/299  2919/1034   (int8)
#   4-bit codes   144/222  127/196   572/284  2730/877    (int4)
#   a book        280/263  238/389   784/332  4505/886    (NF4)
# bfloat16 itself takes 117, 119, 184, 782. Between 16 and 512 rows nothing was timed: the dense
# form, whose time hardly changes there, is taken. float8 codes and FP4 were not timed either; they
# are widened as int8 is, and looked up as NF4 is.
FASTEST = {"8 bits": (1, 16), "4 bits": (1, 16), "book": (2, 16)}


def refusal(N: int, R: int, O: int, codes: jnp.dtype, x: jnp.dtype) -> str | None:
    """Why the kernel cannot serve N groups of R rows of codes for O outputs, or None where it
    can."""
    if card := before_triton():
        return f"Triton makes no kernels for {card}; they begin with compute capability 8"
    if x not in (jnp.bfloat16, jnp.float16, jnp.float32):
        return f"{x} activations must be bfloat16, float16 or float32; set config.precision.compute"
    if codes not in (jnp.int8, jnp.uint8, jnp.float8_e4m3fn, jnp.float8_e5m2):
        return f"it knows no codes of {codes}"
    if _power_of_two(O, COLUMNS) < LEAST:
        return f"{O} outputs must be a multiple of {LEAST}"
    if _power_of_two(R, ROWS) < LEAST:
        return (
            f"groups of {R} rows of codes must be a multiple of {LEAST}; set config.quantize.group "
            "to 64 or 128"
        )
    return None


def faster(rows: int, codes: jnp.dtype, book: bool, transposed: bool) -> bool:
    """Whether the kernel beats XLA's dense form for this many rows of activations a device, where
    codes are of type `codes` and with `book` index a table of values. There is no `transposed`
    product: at 4,096 rows it took 3 to 7 ms and the dense form under one, and training has as
    many."""
    packed = "book" if book else "4 bits"
    least, most = FASTEST[packed if codes == jnp.uint8 else "8 bits"]
    return not transposed and least <= rows <= most


def matmul(x_MI, codes_NRO, scale_N1O, *, book=None, interpret: bool = False) -> jax.Array:
    """x W, [M, O] in the dtype of x."""
    # Deprecated since JAX 0.12, whose successors are each for one kind of GPU only.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from jax.experimental.pallas import triton

    (N, R, O), nibbles = codes_NRO.shape, codes_per_byte(codes_NRO)
    rows, block_o = _power_of_two(R, ROWS), _power_of_two(O, COLUMNS)
    # Short groups share a tile, long ones take several (`splits`).
    groups, splits = (_power_of_two(N, ROWS // rows) if rows == R else 1), R // rows
    # Rows of zeros fill the last tile and are cut off at the end.
    M = pl.cdiv(x_MI.shape[0], TOKENS) * TOKENS
    x = jnp.pad(x_MI, ((0, M - x_MI.shape[0]), (0, 0)))
    sizes = N, nibbles, splits, rows
    y = pl.pallas_call(
        functools.partial(_forward, book=book, groups=groups, block_o=block_o),
        grid=(M // TOKENS, O // block_o),
        # Codes and scales are handed over whole and sliced inside: a program walks all inputs.
        in_specs=[
            pl.BlockSpec((TOKENS, *sizes), lambda i, j: (i, 0, 0, 0, 0)),
            pl.BlockSpec((N, splits, rows, O), lambda i, j: (0, 0, 0, 0)),
            pl.BlockSpec((N, O), lambda i, j: (0, 0)),
        ],
        out_specs=pl.BlockSpec((TOKENS, block_o), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct((M, O), x.dtype),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        cost_estimate=cost(M, M // TOKENS, x_MI, codes_NRO, scale_N1O),
        name="quantized_matmul",
    )(x.reshape(M, *sizes), codes_NRO.reshape(N, splits, rows, O), scale_N1O.reshape(N, O))
    return y[: x_MI.shape[0]]


def _forward(x_ref, codes_ref, scale_ref, y_ref, *, book, groups: int, block_o: int):
    """A tile [m, o] of x W, summed over the inputs."""
    block_m, N, nibbles, splits, rows = x_ref.shape
    # The first index of the grid is the tile of tokens, which block specs have sliced already.
    outputs = pl.ds(pl.program_id(1) * block_o, block_o)

    def _step(k, total):
        group, split = pl.ds(lax.div(k, splits) * groups, groups), lax.rem(k, splits)
        for nibble, w_IO in enumerate(
            _tiles(codes_ref, scale_ref, group, split, outputs, book, x_ref.dtype)
        ):
            # The columns of x that this nibble of the codes multiplies.
            x_MI = x_ref[:, group, nibble, split, :].reshape(block_m, groups * rows)
            total += _dot(x_MI, w_IO)
        return total

    total = lax.fori_loop(
        0, N // groups * splits, _step, jnp.zeros((block_m, block_o), jnp.float32)
    )
    y_ref[...] = total.astype(y_ref.dtype)


def _tiles(codes_ref, scale_ref, group, split, outputs, book, dtype) -> list[jax.Array]:
    """The weight [groups * rows, o] of each nibble."""
    # Loaded once for both nibbles.
    codes = codes_ref[group, split, :, outputs]
    scale = scale_ref[group, outputs][:, None, :]
    nibbles = codes_per_byte(codes)
    return [
        (decode(codes, nibble, book) * scale).astype(dtype).reshape(-1, codes.shape[-1])
        for nibble in range(nibbles)
    ]


def _dot(x: jax.Array, w: jax.Array) -> jax.Array:
    # Sums in float32 whatever multiplies, as XLA does it for 16-bit operands.
    return jnp.dot(x, w, preferred_element_type=jnp.float32)


def _power_of_two(size: int, limit: int) -> int:
    """The largest power of two up to `limit` that divides `size`: Triton's tiles have no other
    sizes."""
    return min(size & -size, limit)
