"""Codes of fewer than 8 bits, packed into bytes.

A code is cut into as few fields of 4, 2 and 1 bits as make up its width, the lowest bits first: 4
bits are one field, 3 bits are fields of 2 and 1, 6 bits are fields of 4 and 2. Fields of one width
are packed together, and the bytes of the widths follow each other. A byte holds n = 8 / width
fields: byte j of a group of G codes has those of codes j, j + G/n, j + 2G/n, ... Unpacking is then
masks and a concatenation, which compilers fuse, with no axis to interleave.

XLA has packed 4-bit types of its own, but its GPU backend unpacks whatever a scan slices: 64 GiB
for a 70B model that takes 47 packed.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def pack(codes: jax.Array, bits: int, axis: int = -1) -> jax.Array:
    """Codes of `bits` bits, one for each element, as bytes uint8. A group lies along `axis`, which
    shrinks to `bits` / 8 of its size. Codes of 8 bits are returned unchanged, and numpy's stay on
    the host.

    >>> pack(jnp.array([1, 2, 3, 4]), 4).tolist() == [1 | 3 << 4, 2 | 4 << 4]
    True
    """
    if bits == 8:
        return codes
    xnp = np if isinstance(codes, np.ndarray) else jnp
    codes = codes.astype(np.uint8)
    packed = []
    for lowest, width in _fields(bits):
        fields = (codes >> lowest) & (2**width - 1)
        # Contiguous parts of the group become the low, next, ... bits of its bytes.
        byte, *higher = xnp.split(fields, 8 // width, axis=axis)
        for place, part in enumerate(higher, 1):
            byte = byte | (part << (place * width))
        packed.append(byte)
    return packed[0] if len(packed) == 1 else xnp.concatenate(packed, axis=axis)


def unpack(packed: jax.Array, bits: int, axis: int = -1) -> jax.Array:
    """The codes that `pack` packed, uint8 in [0, 2^bits); 8-bit codes are returned unchanged."""
    if bits == 8:
        return packed
    # Bytes of the first field width come first; `begin` walks over the widths.
    count, begin, codes = packed.shape[axis] * 8 // bits, 0, []
    for lowest, width in _fields(bits):
        end = begin + count * width // 8
        fields = _split(lax.slice_in_dim(packed, begin, end, axis=axis), width)
        values = jnp.concatenate(fields, axis=axis)
        codes.append(values << lowest if lowest else values)
        begin = end
    return functools.reduce(operator.or_, codes)


def packed_size(count: int, bits: int) -> int:
    """Bytes of a group of `count` codes. ValueError unless each field width fills whole bytes.

    >>> packed_size(64, 4), packed_size(64, 3), packed_size(64, 8)
    (32, 24, 64)
    """
    # The narrowest field needs the most codes to fill a byte, so it decides.
    smallest = min((width for _, width in _fields(bits)), default=8)
    if count * smallest % 8:
        raise ValueError(
            f"a group of {count} codes of {bits} bits does not fill bytes; set "
            f"config.quantize.group to a multiple of {8 // smallest}"
        )
    return count * bits // 8


def _split(byte: jax.Array, width: int) -> list[jax.Array]:
    """The fields of this width in a byte, the lowest first."""
    last = 8 // width - 1
    parts = [byte & (2**width - 1)]
    for place in range(1, last):
        parts.append((byte >> (place * width)) & (2**width - 1))
    # The highest needs no mask: the shift leaves nothing above it.
    return [*parts, byte >> (last * width)]


def _fields(bits: int) -> list[tuple[int, int]]:
    """(lowest bit, width) of each field, the widest first: (0, 2), (2, 1) of 3 bits."""
    fields, lowest = [], 0
    for width in (8, 4, 2, 1):
        # The binary digits of `bits` are the widths that add up to it.
        if bits & width:
            fields.append((lowest, width))
            lowest += width
    return fields
