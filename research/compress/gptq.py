"""GPTQ (arXiv:2210.17323): inputs are rounded one after the other, and those not yet rounded
compensate for the error.

With H = x^T x and its inverse's Cholesky factor U (upper, H^-1 = U^T U), rounding input i leaves
the error e = (w_i - q_i) / U_ii in each output, of which U_ij is taken from every later w_j
(section 3.3, step 3): at once within a block, and in one product behind it (step 2). Scales are
those of rounding to the nearest, fixed before, so groups are the same whatever the order of the
inputs, and every format can be used.
"""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from research.weights.formats import FORMATS, Format, all_codes, decode, pack
from research.weights.quantized import Quantized, quantize_array

DAMPING = 0.01  # of the mean of H's diagonal, added to it
_BLOCK = 128  # inputs whose errors are handed on together


@partial(jax.jit, static_argnames=("format", "inputs", "group", "by_activation"))
def gptq(
    w: jax.Array,
    gram_II: jax.Array,
    format: str,
    *,
    inputs: int,
    group: int | None = None,
    by_activation: bool = True,
) -> Quantized:
    """A weight in a format, as `quantize_array` makes it, with codes chosen for inputs of this gram
    matrix.

    `by_activation` begins with the inputs of the largest sum of squares ("act-order"). ValueError
    for groups that do not divide the inputs.
    """
    # Only its scales and zero points are kept; the codes are chosen anew below.
    nearest, chosen = quantize_array(w, format, inputs=inputs, group=group), FORMATS[format]
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
    # Rows and columns of the gram matrix follow the order of the inputs.
    codes = _solve(w_IO, gram_II[order][:, order], chosen, scale, zero)
    codes = (
        jnp.zeros_like(codes).at[order].set(codes).reshape(size // nearest.group, nearest.group, -1)
    )
    # Two 4-bit codes share a byte, in the layout that `quantize_array` has.
    codes = pack(chosen, codes, axis=1)
    return replace(nearest, codes=codes.reshape(nearest.codes.shape).astype(nearest.codes.dtype))


def _solve(
    w_IO: jax.Array,
    gram_II: jax.Array,
    format: Format,
    scale_IO: jax.Array,
    zero_IO: jax.Array | None,
):
    """Codes [I, O] of the inputs in this order."""
    size = len(w_IO)
    # The smallest normal number keeps even a gram matrix of zeros, of inputs that are never used,
    # positive definite.
    damping = DAMPING * jnp.mean(jnp.diagonal(gram_II)) + jnp.finfo(jnp.float32).tiny
    factor = jax.scipy.linalg.cho_factor(gram_II + damping * jnp.eye(size), lower=True)
    # U of the module's text: the inverse comes from a Cholesky factor, and is factored again.
    upper_II = jnp.linalg.cholesky(jax.scipy.linalg.cho_solve(factor, jnp.eye(size))).T
    # Blocks of equal width, so that one compiled loop serves them all.
    width = max(n for n in range(1, min(_BLOCK, size) + 1) if size % n == 0)

    def _block(k, carry):
        w_IO, codes_IO = carry
        begin = k * width
        # The block's weights are updated input by input; all behind it wait for one product.
        pending_IO, errors = (
            jax.lax.dynamic_slice_in_dim(w_IO, begin, width),
            jnp.zeros((width, w_IO.shape[1])),
        )
        # The block's own triangle of U: errors within it are handed on at once.
        upper = jax.lax.dynamic_slice(upper_II, (begin, begin), (width, width))

        def _row(j, carry):
            pending_IO, errors, codes_IO = carry
            zero = None if zero_IO is None else zero_IO[begin + j]
            code = _code(format, pending_IO[j], scale_IO[begin + j], zero)
            error = (pending_IO[j] - decode(format, code, scale_IO[begin + j], zero)) / upper[j, j]
            # Entries of U to the left of the diagonal are 0, so inputs that are done keep their
            # values.
            pending_IO = pending_IO - upper[j][:, None] * error[None]
            return pending_IO, errors.at[j].set(error), codes_IO.at[begin + j].set(code)

        _, errors, codes_IO = jax.lax.fori_loop(0, width, _row, (pending_IO, errors, codes_IO))
        # One product hands the block's errors to all inputs behind it.
        return w_IO - jax.lax.dynamic_slice_in_dim(upper_II, begin, width).T @ errors, codes_IO

    # The dtype of codes depends on the format, so a code is made to ask for it.
    start = jnp.zeros(
        w_IO.shape,
        _code(format, w_IO[0], scale_IO[0], None if zero_IO is None else zero_IO[0]).dtype,
    )
    return jax.lax.fori_loop(0, size // width, _block, (w_IO, start))[1]


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
