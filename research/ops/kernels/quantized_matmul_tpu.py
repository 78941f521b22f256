"""The quantized product on TPU: tiles of codes are widened in the chip's own memory, on their way
to the matrix unit.

The grid walks tiles of tokens, then of the axis that the result keeps, then of the axis that is
summed into a float32 accumulator. A tile of the weight is one or more groups, or a part of one
where groups are long. Then the two nibbles of a packed tile multiply columns of x that do not lie
side by side, and take two steps of the grid in a row, which fetch the codes once.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from research.ops.kernels.codes import codes_per_byte, cost, decode, dense, divisor

PLATFORM = "tpu"
LANES = 128  # of the vector unit: a tile is a multiple of it wide, or as wide as the array
SUBLANES = 32  # rows of a tile of 8-bit numbers
# Rows and columns of a tile. Widening a tile then costs little beside its product with as many
# tokens.
TILE = 512
LARGEST = 1024  # size up to which an axis that no multiple of 128 divides is one tile


def refusal(N: int, R: int, O: int, codes: jnp.dtype, x: jnp.dtype) -> str | None:
    """Why the kernel cannot serve N groups of R rows of codes for O outputs, or None where it
    can."""
    if x not in (jnp.bfloat16, jnp.float32):
        return f"{x} activations must be bfloat16 or float32; set config.precision.compute"
    if codes not in (jnp.int8, jnp.uint8, jnp.float8_e4m3fn, jnp.float8_e5m2):
        return f"it knows no codes of {codes}"
    if not _columns(O):
        return f"{O} outputs must be a multiple of {LANES} or at most {LARGEST}"
    if R % SUBLANES or not _rows(N, R, 2 if codes == jnp.uint8 else 1):
        return (
            f"{N} groups of {R} rows of codes do not make tiles; set config.quantize.group to 64 "
            "or 128"
        )
    return None


def faster(rows: int, codes: jnp.dtype, book: bool, transposed: bool) -> bool:
    """True: no crossover with XLA's dense form is known, and the kernel needs the least memory."""
    return True


def matmul(
    x_MI, codes_NRO, scale_N1O, *, book=None, transposed: bool = False, interpret: bool = False
) -> jax.Array:
    """x W [M, O], or with `transposed` x W^T [M, I] of x [M, O], in the dtype of x."""
    (N, R, O), nibbles = codes_NRO.shape, codes_per_byte(codes_NRO)
    block_m, M = _tokens(x_MI.shape[0])
    block_o = _columns(O)
    groups, rows = _rows(N, R, nibbles)
    reads = nibbles if rows < R else 1  # steps of the grid that a tile of codes is read in
    # Inputs of a tile in one step, and tiles that a long group takes.
    inputs, per_group = groups * rows * nibbles // reads, R // rows
    steps = N // groups * per_group * reads

    def tile(k):
        """Group tile, tile within the group, and tile of the inputs' axis at step k."""
        group, within = k // (per_group * reads), k // reads % per_group
        return group, within, group * per_group * reads + k % reads * per_group + within

    if transposed:
        # What is summed is the last axis of the grid: its steps come in a row and share the
        # accumulator.
        grid, order = (M // block_m, steps, O // block_o), (lambda i, k, o: (i, k, o))
    else:
        grid, order = (M // block_m, O // block_o, steps), (lambda i, o, k: (i, k, o))

    def _block(shape, index):
        return pl.BlockSpec(shape, lambda *at: index(*order(*at)))

    of_inputs = _block((block_m, inputs), lambda i, k, o: (i, tile(k)[2]))
    of_outputs = _block((block_m, block_o), lambda i, k, o: (i, o))
    operand, result = (of_outputs, of_inputs) if transposed else (of_inputs, of_outputs)
    y = pl.pallas_call(
        functools.partial(_kernel, book=book, reads=reads, transposed=transposed),
        grid=grid,
        in_specs=[
            operand,
            _block((groups, rows, block_o), lambda i, k, o: (*tile(k)[:2], o)),
            _block((groups, 1, block_o), lambda i, k, o: (tile(k)[0], 0, o)),
        ],
        out_specs=result,
        out_shape=jax.ShapeDtypeStruct((M, N * R * nibbles if transposed else O), x_MI.dtype),
        scratch_shapes=[pltpu.VMEM((block_m, inputs if transposed else block_o), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        cost_estimate=cost(M, M // block_m, x_MI, codes_NRO, scale_N1O),
        name="quantized_matmul_transposed" if transposed else "quantized_matmul",
    )(jnp.pad(x_MI, ((0, M - x_MI.shape[0]), (0, 0))), codes_NRO, scale_N1O)
    return y[: x_MI.shape[0]]


def _kernel(x_ref, codes_ref, scale_ref, y_ref, sum_ref, *, book, reads: int, transposed: bool):
    """One step of the grid: adds the product of a tile of x and a tile of the weight to the sum."""
    summed = pl.program_id(2)

    @pl.when(summed == 0)
    def _():
        sum_ref[...] = jnp.zeros_like(sum_ref)

    if reads == 1:
        w_IO = dense(codes_ref[...], scale_ref[...], book, x_ref.dtype)
    else:
        # Two steps in a row read the same codes: first their low nibbles, then their high ones.
        nibble = pl.program_id(1 if transposed else 2) % reads
        w_IO = (decode(codes_ref[...], nibble, book) * scale_ref[...]).astype(x_ref.dtype)[0]
    sum_ref[...] += lax.dot_general(
        x_ref[...],
        w_IO,
        (((1,), (1 if transposed else 0,)), ((), ())),
        preferred_element_type=jnp.float32,
    )

    @pl.when(summed == pl.num_programs(2) - 1)
    def _():
        y_ref[...] = sum_ref[...].astype(y_ref.dtype)


def _tokens(M: int) -> tuple[int, int]:
    """(tokens a tile, tokens padded to a multiple of that)."""
    if M <= TILE:
        padded = -(-M // 16) * 16  # rows of a tile of bfloat16
        return padded, padded
    # Whole lanes, so that a divisor which is a multiple of them exists.
    padded = -(-M // LANES) * LANES
    return divisor(padded, TILE, LANES), padded


def _columns(O: int) -> int:
    """Outputs a tile; 0 if none will do."""
    return divisor(O, TILE, LANES) or (O if O <= LARGEST else 0)


def _rows(N: int, R: int, nibbles: int) -> tuple[int, int] | None:
    """Groups, and rows of codes of each, in a tile; None if none will do."""
    G = R * nibbles
    # Short groups: as many as fit a tile, but whole lanes of x or all there are.
    if G <= TILE:
        groups = next(
            (n for n in range(TILE // G, 0, -1) if N % n == 0 and (n * G % LANES == 0 or n == N)), 0
        )
        if groups:
            return groups, R
        return (N, R) if N * G <= LARGEST else None
    # A long group: a part of it is a tile, whose columns of x must be whole lanes.
    rows = divisor(R, TILE, LANES)
    if rows:
        return 1, rows
    return (1, R) if N == 1 and G <= 2 * LARGEST else None
