"""Codes of fewer than 8 bits, packed into bytes.

A code is cut into fields of 4, 2 and 1 bits, as few as make up its width: a code of 4 bits is one
field, one of 3 bits a field of 2 and a field of 1, one of 6 a field of 4 and a field of 2, the
lowest bits first. The fields of one width are packed on their own, and their bytes follow each
other. With n = 8 / width fields a byte, byte j of G codes holds those of j, j + G/n, j + 2G/n, ...,
so unpacking is masks and a concatenation, which compilers fuse; no axis has to be interleaved.

XLA's own 4-bit types are packed too, but its GPU backend unpacks whatever a scan slices: 64 GiB
where a 70B model takes 47.
"""

import functools
import operator

import jax
import jax.numpy as jnp
from jax import lax


def pack(codes: jax.Array, bits: int, axis: int = -1) -> jax.Array:
    """Codes of so many bits, one an element, as bytes uint8; `axis` is that of a group and shrinks
    to `bits` / 8 of its size. Codes of 8 bits are returned as they are.

    >>> pack(jnp.array([1, 2, 3, 4]), 4).tolist() == [1 | 3 << 4, 2 | 4 << 4]
    True
    """
    if bits == 8:
        return codes
    codes = codes.astype(jnp.uint8)
    packed = []
    for lowest, width in _fields(bits):
        fields = (codes >> lowest) & (2**width - 1)
        byte, *higher = jnp.split(fields, 8 // width, axis=axis)
        for place, part in enumerate(higher, 1):
            byte = byte | (part << (place * width))
        packed.append(byte)
    return packed[0] if len(packed) == 1 else jnp.concatenate(packed, axis=axis)


def unpack(packed: jax.Array, bits: int, axis: int = -1) -> jax.Array:
    """The codes that `pack` packed, uint8 in [0, 2^bits)."""
    if bits == 8:
        return packed
    count, begin, codes = packed.shape[axis] * 8 // bits, 0, []
    for lowest, width in _fields(bits):
        end = begin + count * width // 8
        fields = _split(lax.slice_in_dim(packed, begin, end, axis=axis), width)
        values = jnp.concatenate(fields, axis=axis)
        codes.append(values << lowest if lowest else values)
        begin = end
    return functools.reduce(operator.or_, codes)


def packed_size(count: int, bits: int) -> int:
    """How many bytes a group of `count` codes takes. ValueError where it is no whole number for
    each of the fields.

    >>> packed_size(64, 4), packed_size(64, 3), packed_size(64, 8)
    (32, 24, 64)
    """
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
        if bits & width:
            fields.append((lowest, width))
            lowest += width
    return fields
