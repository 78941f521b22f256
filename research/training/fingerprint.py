"""Checksums of arrays on devices, independent of their sharding.

Storage can return flipped bits without an error. The checksum is integer arithmetic modulo 2**32,
so any mesh, number of devices and order of summation gives the same value. It detects accidents,
not forgeries.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from research import tree
from research.data.documents import digest

_UNSIGNED = {
    2: jnp.uint2,
    4: jnp.uint4,
    8: jnp.uint8,
    16: jnp.uint16,
    32: jnp.uint32,
    64: jnp.uint64,
}
# 2**32 over the golden ratio, made odd: it spreads neighbouring positions.
_ROTATION = np.uint32(0x9E3779B9)
# The multipliers of MurmurHash3's 32-bit finalizer.
_MIX = (np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35))


def fingerprint(state: tree.Tree) -> dict[str, str]:
    """{path: 16 hexadecimal digits} for a tree of jax.Arrays, on whatever devices they are.

    The digits depend on the bits of an array and on their positions, and on nothing else. A change
    of one element always changes the digits; any other change goes unnoticed with a probability of
    about 2**-64. The whole tree is one program, whose temporary arrays are at most as large as a
    leaf without its last axis. ValueError for a leaf that is no array, and for a typed random key:
    pass `jax.random.key_data` of it.
    """
    leaves = tree.paths(state)
    for path, leaf in leaves.items():
        if not isinstance(leaf, jax.Array) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError(
                f"{path} is {_describe(leaf)}; only plain jax.Arrays have a fingerprint"
            )
    # One program and one transfer, instead of a dispatch and a wait for each leaf.
    sums = jax.device_get(_checksums(list(leaves.values())))
    return {path: f"{int(high):08x}{int(low):08x}" for path, (high, low) in zip(leaves, sums)}


def combined(state: tree.Tree) -> str:
    """One digest, 64 hexadecimal digits, of all the fingerprints of a tree and their paths."""
    return digest(*(f"{path} {bits}" for path, bits in fingerprint(state).items()), "")


def _describe(leaf) -> str:
    if isinstance(leaf, jax.Array):
        return f"a random key of type {leaf.dtype}, store jax.random.key_data of it"
    return f"a {type(leaf).__name__}"


@jax.jit
def _checksums(leaves: list[jax.Array]) -> list[tuple[jax.Array, jax.Array]]:
    return [_checksum(leaf) for leaf in leaves]


def _checksum(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two uint32 sums over elements of two bijections of (bits + hash of the position)."""
    # Sums of words are added, so the order in which devices reduce their shards does not matter.
    pairs = [_word_checksum(word, salt) for salt, word in enumerate(_words(x))]
    return tuple(functools.reduce(operator.add, sums) for sums in zip(*pairs))


def _words(x: jax.Array) -> list[jax.Array]:
    """The bits of `x` as uint32 arrays of its shape: one for elements of up to 32 bits, two or four
    for wider ones."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return _words(x.real) + _words(x.imag)
    if x.dtype == jnp.bool_:
        return [x.astype(jnp.uint32)]
    info = jnp.finfo(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype)
    # Bits and not values: NaN differs from itself, and -0.0 equals 0.0.
    bits = lax.bitcast_convert_type(x, _UNSIGNED[info.bits])
    if info.bits == 64:
        return [bits.astype(jnp.uint32), (bits >> 32).astype(jnp.uint32)]
    return [bits.astype(jnp.uint32)]


def _word_checksum(word: jax.Array, salt: int) -> tuple[jax.Array, jax.Array]:
    """The two sums of one uint32 array; `salt` tells the words of a wide element apart."""
    # The reduction below needs a last axis.
    if word.ndim == 0:
        word = word.reshape(1)
    # A hash of the position, so that two values that trade places change the sum. It is made of
    # iotas, which XLA fuses into the reduction below.
    position = jnp.full(word.shape, salt, jnp.uint32)
    for axis in range(word.ndim):
        position = (position + lax.broadcasted_iota(jnp.uint32, word.shape, axis)) * _ROTATION
    # Each line is invertible, so one changed element always changes the sum of its array.
    first = word + position
    first = (first ^ (first >> 16)) * _MIX[0]
    first = (first ^ (first >> 13)) * _MIX[1]
    # A second mixing of the first: 32 bits of one sum would let one change in 2^32 pass.
    second = (first ^ (first >> 16)) * _MIX[0]
    second = second ^ (second >> 15)  # without it the second sum would repeat most of the first
    zero = np.uint32(0)
    # Both sums in one reduction over the last axis: XLA fuses that with the mixing, while a sum
    # over all axes makes the CPU backend write out the whole mixed array first (20 GB/s against 1
    # GB/s on two cores).
    sums = lax.reduce(
        (first, second), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), (word.ndim - 1,)
    )
    return tuple(jnp.sum(column, dtype=jnp.uint32) for column in sums)
