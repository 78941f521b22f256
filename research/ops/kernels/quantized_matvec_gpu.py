"""The product of a few rows with a quantized weight on GPU, as decoding needs it: memory bandwidth
is its limit, so the sum over the inputs is split over all multiprocessors, and a code is decoded in
few operations.

A thread owns up to 16 neighbouring outputs, whose codes of a row are one load of 16 bytes, and
walks some rows of codes. No sum passes from thread to thread before the end of the walk. The sums
of the programs that share outputs, float32, are added by XLA in a second, small kernel: in an order
that does not vary.

Untimed: no card has run it. For a weight [4096, 14336] and one row of bfloat16, on an H100:

                                               NF4    int4   int8
    codes, scales and partial sums, MB          35     35     61
    at 3.35 TB/s, microseconds                  10     10     18
    instructions a code (compiled for sm_90a)   7.5    7.5    6.8
    the multiprocessors issue them in            15     15     13

against 130 that the tiled kernel takes for NF4, whose 15 selections a code bound it, and 63 to 73
of bfloat16 itself. An NF4 code is read from a table that lies in one line of the first cache. No
register is spilled for one row, one for 8. Until `python -m research.bench card` has timed it,
`FASTEST` is empty and no product takes it.
"""

import functools
import itertools
import warnings

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from research.devices.backend import before_triton
from research.ops.kernels.codes import codes_per_byte, cost

PLATFORM = "gpu"
MOST = 8  # rows of activations that it is made for: each adds 16 sums to the registers of a thread
# Rows of activations, (least, most), at which it was measured to beat what comes after it, by kind
# of codes ("8 bits", "4 bits", "book"): none was.
FASTEST: dict[str, tuple[int, int]] = {}
COLUMNS = 512  # outputs of a program at most: 32 threads of 16 bytes
WARPS = 4  # of a program, each with rows of codes of its own
LOADS = 4  # rows of codes that a thread loads at once
PROGRAMS = 512  # programs wanted, about four for each multiprocessor of an H100
LEAST = 16  # outputs of a program
# The float32 whose last bits are an integer below 2^23: adding one is setting its bits, and that
# integer's value is the difference, exactly.
BIASED = 0x4B000000


def refusal(N: int, R: int, O: int, codes: jnp.dtype, x: jnp.dtype) -> str | None:
    """Why the kernel cannot serve N groups of R rows of codes for O outputs, or None where it
    can."""
    if card := before_triton():
        return f"Triton makes no kernels for {card}; they begin with compute capability 8"
    if x not in (jnp.bfloat16, jnp.float16, jnp.float32):
        return f"{x} activations must be bfloat16, float16 or float32; set config.precision.compute"
    if codes not in (jnp.int8, jnp.uint8):
        return f"it knows no codes of {codes}"
    if O % LEAST:
        return f"{O} outputs must be a multiple of {LEAST}"
    return None


def faster(rows: int, codes: jnp.dtype, book: bool, transposed: bool) -> bool:
    """Whether the kernel beats what comes after it for this many rows of activations a device,
    where codes are of type `codes` and with `book` index a table of values."""
    packed = "book" if book else "4 bits"
    least, most = FASTEST.get(packed if codes == jnp.uint8 else "8 bits", (1, 0))
    return not transposed and least <= rows <= most


def matmul(x_MI, codes_NRO, scale_N1O, *, book=None, interpret: bool = False) -> jax.Array:
    """x W, [M, O] in the dtype of x, for codes as in `research.ops.kernels.codes`."""
    # Deprecated since JAX 0.12, whose successors are each for one kind of GPU only.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from jax.experimental.pallas import triton

    M, (N, R, O) = x_MI.shape[0], codes_NRO.shape
    columns, rows = min(O & -O, COLUMNS), min(R & -R, WARPS)
    loads = min((R & -R) // rows, LOADS)
    steps, splits = _split(N * (R // (rows * loads)), O // columns)
    operands = [x_MI.reshape(M, N, codes_per_byte(codes_NRO) * R), codes_NRO]
    operands.append(scale_N1O.reshape(N, O))
    if book is not None:
        operands.append(jnp.asarray(book, jnp.float32))
    # Handed over whole: a program slices what it walks.
    partial_SMO = pl.pallas_call(
        functools.partial(_body, columns=columns, rows=rows, loads=loads, steps=steps),
        grid=(O // columns, splits),
        in_specs=[pl.BlockSpec(a.shape, lambda i, j, n=a.ndim: (0,) * n) for a in operands],
        out_specs=pl.BlockSpec((splits, M, O), lambda i, j: (0, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((splits, M, O), jnp.float32),
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        cost_estimate=cost(M, 1, x_MI, codes_NRO, scale_N1O),
        name="quantized_matvec",
    )(*operands)
    return jnp.sum(partial_SMO, axis=0).astype(x_MI.dtype)


def _split(steps: int, tiles: int) -> tuple[int, int]:
    """(steps of a program, programs that share a tile of outputs): the fewest that make about
    `PROGRAMS` over all tiles."""
    wanted = min(steps, max(1, steps * tiles // PROGRAMS))
    each = next(size for size in range(wanted, steps + 1) if steps % size == 0)
    return each, steps // each


def _body(x_ref, codes_ref, scale_ref, *refs, columns: int, rows: int, loads: int, steps: int):
    """The partial sums of a program, [M, columns], over `steps` times `loads` times `rows` rows of
    codes."""
    *book, y_ref = refs
    M, (_, R, _) = x_ref.shape[0], codes_ref.shape
    outputs, split = pl.ds(pl.program_id(0) * columns, columns), pl.program_id(1)
    nibbles, height = range(x_ref.shape[2] // R), rows * loads

    def _step(k, totals):
        at = split * steps + k
        group, first = lax.div(at, R // height), lax.rem(at, R // height) * height
        places = [pl.ds(first + load * rows, rows) for load in range(loads)]
        # All loads come first, so that they are under way together.
        codes = [codes_ref[group, place, outputs] for place in places]
        scale = scale_ref[group, outputs][None]
        for load, nibble in itertools.product(range(loads), nibbles):
            w = _decode(codes[load], nibble, *book) * scale
            place = pl.ds(nibble * R + first + load * rows, rows)
            xs = [x_ref[m, group, place].astype(jnp.float32)[:, None] for m in range(M)]
            totals = tuple(total + w * x for total, x in zip(totals, xs))
        return totals

    # A row of sums for each row of codes: none are added to each other before the end.
    zeros = tuple(jnp.zeros((rows, columns), jnp.float32) for _ in range(M))
    for m, total in enumerate(lax.fori_loop(0, steps, _step, zeros)):
        y_ref[split, m, outputs] = jnp.sum(total, axis=0)


def _decode(codes: jax.Array, nibble: int, book_ref=None) -> jax.Array:
    """The values of codes, float32, of one nibble of packed ones."""
    if codes.dtype == jnp.int8:
        return _number(codes.astype(jnp.int32) & 255, bits=8)
    places = codes.astype(jnp.int32)
    places = lax.shift_right_logical(places, jnp.full_like(places, 4)) if nibble else places & 15
    # The table is one line of the first cache: a read of it by all threads of a warp is one access.
    return _number(places, bits=4) if book_ref is None else book_ref[places]


def _number(places: jax.Array, bits: int) -> jax.Array:
    """The two's complement numbers of so many bits as float32. A conversion would be a sixteenth of
    the speed of these operations."""
    half = 1 << (bits - 1)  # flipping the sign bit adds it, so that no number is negative
    biased = lax.bitcast_convert_type(places ^ (BIASED | half), jnp.float32)
    return biased - jnp.float32(2**23 + half)
