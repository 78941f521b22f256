"""GPTQ (arXiv:2210.17323) and SparseGPT (arXiv:2301.00774): inputs are rounded or pruned one after
the other, and those that are not yet settled compensate for the error.

With H = x^T x and its inverse's Cholesky factor U (upper, H^-1 = U^T U), settling input i leaves
the error e = (w_i - q_i) / U_ii in each output, of which U_ij is taken from every later w_j
(GPTQ, section 3.3, step 3): at once within a block, and in one product behind it (step 2). Scales
are those of rounding to the nearest, fixed before, so groups are the same whatever the order of the
inputs, and every format can be used.

SparseGPT prunes by the least w^2 / U_ii^2 (section 3.3, equation 4): a share of a whole block when
the block begins, or of each N:M group when its first input is reached. Kept weights are rounded in
the same pass where a format is asked for (section 3.5), so at a share of 0 it is GPTQ, bit for bit.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.compress.masks import Pruning, keep
from research.weights.formats import FORMATS, Format, all_codes, decode, pack
from research.weights.quantized import Quantized, quantize_array

DAMPING = 0.01  # of the mean of H's diagonal, added to it
_BLOCK = 128  # inputs whose errors are handed on together

# (input's number, its weights [O], which of them are kept or None) to what is stored of them and
# the values that this stands for.
Settle = Callable[[jax.Array, jax.Array, jax.Array | None], tuple[jax.Array, jax.Array]]


@partial(jax.jit, static_argnames=("format", "inputs", "group", "by_activation", "pruning"))
def gptq(
    w: jax.Array,
    gram_II: jax.Array,
    format: str,
    *,
    inputs: int,
    group: int | None = None,
    by_activation: bool = True,
    pruning: Pruning | None = None,
) -> Quantized:
    """A weight in a format, as `quantize_array` makes it, with codes chosen for inputs of this gram
    matrix.

    `by_activation` begins with the inputs of the largest sum of squares ("act-order"). With a
    `pruning` that much of the codes stands for 0. ValueError for groups that do not divide the
    inputs, and for pruning in a format without an exact zero.
    """
    # Only its scales and zero points are kept; the codes are chosen anew below.
    nearest, chosen = quantize_array(w, format, inputs=inputs, group=group), FORMATS[format]
    if pruning and chosen.has_zero:
        raise ValueError(f"{format} has no code for an exact zero; prune with int4, nf4 or int8")
    size = math.prod(w.shape[:inputs])
    # A scale for every input, so that reordering inputs reorders their scales.
    scale, zero = (
        None if x is None else jnp.repeat(x.reshape(x.shape[0], -1), nearest.group, axis=0)
        for x in (nearest.plain_scale(), nearest.zero)
    )
    # Inputs that matter most are rounded first, while all others can still compensate.
    order = jnp.argsort(-jnp.diagonal(gram_II)) if by_activation else jnp.arange(size)
    w_IO, scale, zero = (
        None if x is None else x[order]
        for x in (w.reshape(size, -1).astype(jnp.float32), scale, zero)
    )

    def _settle(i, w_O, kept_O):
        w_O = w_O if kept_O is None else jnp.where(kept_O, w_O, 0)
        scales = scale[i], None if zero is None else zero[i]
        code_O = _code(chosen, w_O, *scales)
        return code_O, decode(chosen, code_O, *scales)

    # Rows and columns of the gram matrix follow the order of the inputs.
    codes = _solve(w_IO, gram_II[order][:, order], _settle, pruning)
    codes = (
        jnp.zeros_like(codes).at[order].set(codes).reshape(size // nearest.group, nearest.group, -1)
    )
    # Two 4-bit codes share a byte, in the layout that `quantize_array` has.
    codes = pack(chosen, codes, axis=1)
    return replace(nearest, codes=codes.reshape(nearest.codes.shape).astype(nearest.codes.dtype))


@partial(jax.jit, static_argnames=("pruning", "inputs"))
def sparse_gpt(w: jax.Array, gram_II: jax.Array, pruning: Pruning, *, inputs: int) -> jax.Array:
    """A weight with a share, or N:M, of it 0 and the rest moved to compensate for inputs of this
    gram matrix, in the weight's type. The inputs keep their order, as in the authors' code: N:M
    groups are of neighbours, and a block of the largest inputs would lose its share too."""

    def _settle(i, w_O, kept_O):
        value_O = jnp.where(kept_O, w_O, 0)
        return value_O, value_O

    w_IO = w.reshape(math.prod(w.shape[:inputs]), -1).astype(jnp.float32)
    return _solve(w_IO, gram_II, _settle, pruning).reshape(w.shape).astype(w.dtype)


class _Block(NamedTuple):
    """Inputs [i, O] of one block on their way: their weights, errors, and which are kept."""

    pending_iO: jax.Array
    errors_iO: jax.Array
    kept_iO: jax.Array | None


def _solve(
    w_IO: jax.Array, gram_II: jax.Array, settle: Settle, pruning: Pruning | None
) -> jax.Array:
    """What `settle` stores of each input [I, O], in this order."""
    upper_II, size = _upper(gram_II), len(w_IO)
    of = pruning.pattern[1] if pruning and pruning.pattern else 1
    # Blocks of equal width, so that one compiled loop serves them all, and of whole N:M groups.
    width = max(n for n in range(1, min(_BLOCK, size) + 1) if size % n == 0 and n % of == 0)

    def _block(k, carry):
        w_IO, stored_IO = carry
        begin = k * width
        # The block's weights are updated input by input; all behind it wait for one product.
        pending_iO = jax.lax.dynamic_slice_in_dim(w_IO, begin, width)
        # The block's own triangle of U: errors within it are handed on at once.
        upper_ii = jax.lax.dynamic_slice(upper_II, (begin, begin), (width, width))
        diagonal_i = jnp.diagonal(upper_ii)
        kept_iO = None if pruning is None else _kept(pending_iO, diagonal_i, pruning)

        def _row(j, carry):
            (pending_iO, errors_iO, kept_iO), stored_IO = carry
            if kept_iO is not None and of > 1:
                # Weights of a group have moved since the block began, so it is chosen only now.
                kept_iO = jax.lax.cond(
                    j % of == 0,
                    lambda: _kept_of_group(j, of, pending_iO, diagonal_i, kept_iO, pruning),
                    lambda: kept_iO,
                )
            kept_O = None if kept_iO is None else kept_iO[j]
            stored_O, value_O = settle(begin + j, pending_iO[j], kept_O)
            error_O = (pending_iO[j] - value_O) / upper_ii[j, j]
            # Entries of U to the left of the diagonal are 0, so inputs that are done keep their
            # values.
            pending_iO = pending_iO - upper_ii[j][:, None] * error_O[None]
            block = _Block(pending_iO, errors_iO.at[j].set(error_O), kept_iO)
            return block, stored_IO.at[begin + j].set(stored_O)

        block = _Block(pending_iO, jnp.zeros((width, w_IO.shape[1])), kept_iO)
        block, stored_IO = jax.lax.fori_loop(0, width, _row, (block, stored_IO))
        # One product hands the block's errors to all inputs behind it.
        slab_iI = jax.lax.dynamic_slice_in_dim(upper_II, begin, width)
        return w_IO - slab_iI.T @ block.errors_iO, stored_IO

    # The dtype of codes depends on the format, so one input is settled to ask for it.
    kept_O = None if pruning is None else jnp.ones(w_IO.shape[1], bool)
    start = jnp.zeros(w_IO.shape, settle(0, w_IO[0], kept_O)[0].dtype)
    return jax.lax.fori_loop(0, size // width, _block, (w_IO, start))[1]


def _upper(gram_II: jax.Array) -> jax.Array:
    """U of the module's text: the inverse comes from a Cholesky factor, and is factored again."""
    size = len(gram_II)
    # The smallest normal number keeps even a gram matrix of zeros, of inputs that are never used,
    # positive definite.
    damping = DAMPING * jnp.mean(jnp.diagonal(gram_II)) + jnp.finfo(jnp.float32).tiny
    factor = jax.scipy.linalg.cho_factor(gram_II + damping * jnp.eye(size), lower=True)
    return jnp.linalg.cholesky(jax.scipy.linalg.cho_solve(factor, jnp.eye(size))).T


def _kept(w_iO: jax.Array, diagonal_i: jax.Array, pruning: Pruning) -> jax.Array:
    """Which weights of a block or a group stay, by what pruning each would cost."""
    return keep(jnp.square(w_iO / diagonal_i[:, None]), pruning, "matrix")


def _kept_of_group(j, of, pending_iO, diagonal_i, kept_iO, pruning):
    """`kept_iO` with the rows of the N:M group that begins at row j chosen anew."""
    group_iO = jax.lax.dynamic_slice_in_dim(pending_iO, j, of)
    chosen_iO = _kept(group_iO, jax.lax.dynamic_slice_in_dim(diagonal_i, j, of), pruning)
    return jax.lax.dynamic_update_slice_in_dim(kept_iO, chosen_iO, j, axis=0)


def _code(format: Format, x: jax.Array, scale: jax.Array, zero: jax.Array | None) -> jax.Array:
    """The code whose value is nearest, under a scale that is given."""
    if format.bits < 8 or format.codes in ("affine", "offset", "book"):
        # Few codes, or values without a formula: every one is tried.
        codes = all_codes(format)
        values = decode(format, codes[:, None], scale[None], None if zero is None else zero[None])
        return codes[jnp.argmin(jnp.abs(values - x[None]), axis=0)]
    # A group of zeros has the scale 0.
    scaled = x / jnp.where(scale == 0, 1, scale)
    if format.codes == "integer":
        return jnp.clip(jnp.round(scaled), -format.top, format.top).astype(jnp.int8)
    return jnp.clip(scaled, -format.top, format.top).astype(format.dtype)
