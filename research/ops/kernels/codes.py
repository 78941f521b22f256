"""The layout of codes in the quantized kernels, their decoding, and the cost of a kernel.

Codes are [N, R, O]: N groups of R bytes for each of O outputs. For codes of 8 bits R is the group's
size G. For packed codes of 4 bits R = G / 2, and byte j of a group has code j in its low nibble and
code j + R in its high one.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def dense(
    codes_NRO: jax.Array, scale_N1O: jax.Array, book: Sequence[float] | None, dtype: jnp.dtype
) -> jax.Array:
    """The weight [I, O] in `dtype`, or a kernel's tile of it."""
    # The low nibbles of a group are its first half and the high ones its second, so the halves join
    # end to end.
    nibbles = range(codes_per_byte(codes_NRO))
    halves = [decode(codes_NRO, nibble, book) * scale_N1O for nibble in nibbles]
    # [N, G, O] flattened over groups is [I, O], as groups follow each other along the inputs.
    values = halves[0] if len(halves) == 1 else jnp.concatenate(halves, axis=1)
    return values.astype(dtype).reshape(-1, codes_NRO.shape[-1])


def decode(codes: jax.Array, nibble: int | jax.Array, book: Sequence[float] | None) -> jax.Array:
    """The values of codes, float32 in their shape. For packed codes, those of one nibble of each
    byte: 0 the low, 1 the high."""
    # Codes of 8 bits are numbers already.
    if codes.dtype != jnp.uint8:
        return codes.astype(jnp.float32)
    # Shifted as 32-bit numbers, which every target has.
    places = jnp.full(codes.shape, 4 * nibble, jnp.int32)
    unpacked = lax.shift_right_logical(codes.astype(jnp.int32), places) & 15
    if book is None:
        # Two's complement of 4 bits: flipping the sign bit, then taking it off, extends the sign.
        return ((unpacked ^ 8) - 8).astype(jnp.float32)
    return select(book, unpacked)


def select(book: Any, codes: jax.Array) -> jax.Array:
    """book[codes], float32, for a book of 2^bits values, by one selection a bit of the code:
    kernels have no indexed read of a register."""
    # Bit by bit the candidates halve: after the lowest bit only every second entry is left.
    values, bit = list(book), 0
    while len(values) > 1:
        high = (codes & (1 << bit)) != 0
        values = [jnp.where(high, odd, even) for even, odd in zip(values[::2], values[1::2])]
        bit += 1
    return values[0].astype(jnp.float32)


def codes_per_byte(codes: jax.Array) -> int:
    """Codes in a byte: 2 of packed 4-bit codes, else 1."""
    return 2 if codes.dtype == jnp.uint8 else 1


def cost(tokens: int, tiles: int, x: jax.Array, codes_NRO: jax.Array, scale_N1O: jax.Array):
    """The cost that a kernel tells XLA: the product for all tokens, padding included, with codes
    read once for each of `tiles` tiles of tokens."""
    from jax.experimental import pallas as pl  # Pallas takes a second

    I, O = codes_NRO.shape[0] * codes_NRO.shape[1] * codes_per_byte(codes_NRO), codes_NRO.shape[2]
    weight = codes_NRO.size * codes_NRO.dtype.itemsize + scale_N1O.size * scale_N1O.dtype.itemsize
    # Each tile of tokens reads the whole weight again; x and y pass once.
    moved = tokens * (I + O) * x.dtype.itemsize + tiles * weight
    return pl.CostEstimate(flops=2 * tokens * I * O, bytes_accessed=moved, transcendentals=0)


def divisor(size: int, limit: int, multiple: int = 1) -> int:
    """The largest divisor of `size` up to `limit` that is a multiple of `multiple`; 0 if there is
    none."""
    return next(
        (d for d in range(min(size, limit), 0, -1) if size % d == 0 and d % multiple == 0), 0
    )
