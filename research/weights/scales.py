"""Scales stored in 8 bits: quantized themselves, as in QLoRA (arXiv:2305.14314, section 3, "double
quantization"), or as powers of two (the Open Compute Project's e8m0)."""

from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from research.devices.backend import barrier
from research.ops.lookup import look_up, reciprocal
from research.weights.dynamic_map import DYNAMIC_MAP

BLOCK = 256  # scales that share a second scale
_STEPS = 65535  # of the grid on which bitsandbytes' CPU library looks codes up


@partial(
    jax.tree_util.register_dataclass, data_fields=["codes", "absmax", "offset"], meta_fields=[]
)
@dataclass(frozen=True)
class QuantizedScales:
    """A row of scales in blocks of 256, the last of which may be shorter. A scale is
    map[code] * absmax + offset, with `research.weights.dynamic_map.DYNAMIC_MAP`.

    codes    uint8 [..., count]
    absmax   float32 [..., blocks], the largest distance from the offset in each block
    offset   float32 [..., 1], the mean of the scales
    """

    codes: jax.Array
    absmax: jax.Array
    offset: jax.Array

    def dense(self) -> jax.Array:
        """The scales, float32 [..., count]."""
        # The inverse of `_encoded`: product, then sum, in float32 as bitsandbytes computes it.
        values = look_up(DYNAMIC_MAP, self.codes)
        return values * _by_scale(self.absmax, values.shape[-1]) + self.offset

    def part(self, first: int, last: int) -> "QuantizedScales":
        """The scales from `first`, where a block starts, to `last`."""
        blocks = slice(first // BLOCK, -(-last // BLOCK))
        return QuantizedScales(self.codes[first:last], self.absmax[blocks], self.offset)


def quantize_scales(scales: jax.Array) -> QuantizedScales:
    """Scales float32 [..., count] in 8 bits each. Equal to bitsandbytes' CPU arithmetic to the bit,
    except for the mean, which is summed in another order."""
    # Scales are all positive; less their mean they use both signs of the map.
    offset = jnp.mean(scales, axis=-1, keepdims=True)
    codes, absmax = _encoded(scales, offset)
    return QuantizedScales(codes, absmax, offset)


@jax.jit
def _encoded(scales: jax.Array, offset: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Codes [..., count] and the largest distances from the offset [..., blocks]."""
    count, centred = scales.shape[-1], scales - offset
    # Zeros fill up the last block, where they cannot become the largest distance.
    filled = jnp.pad(centred, [(0, 0)] * (scales.ndim - 1) + [(0, -count % BLOCK)])
    absmax = jnp.max(jnp.abs(filled.reshape(*scales.shape[:-1], -1, BLOCK)), axis=-1)
    largest = _by_scale(absmax, count)
    scaled = jnp.clip(centred * reciprocal(largest), -1, 1)
    # bitsandbytes looks up the code of the nearest grid point, not of the value itself. The barrier
    # keeps the compiler from fusing product and sum into one operation, which would round once
    # where bitsandbytes rounds twice.
    index = jnp.floor(barrier((scaled + 1) * 0.5 * _STEPS) + 0.5).astype(jnp.int32)
    return jnp.where(largest == 0, 0, look_up(_table(), index)).astype(jnp.uint8), absmax


def to_exponents(scales: jax.Array) -> jax.Array:
    """The largest power of two that is at most each (positive) scale, as an exponent uint8: 127
    stands for 1. Scales below 2^-126, zero included, become 2^-126."""
    bits = lax.bitcast_convert_type(scales.astype(jnp.float32), jnp.uint32)
    # Bits 23 to 30 of a float32 are its exponent: reading them rounds down to a power of two.
    return jnp.clip((bits >> 23) & 255, 1, 254).astype(jnp.uint8)


def from_exponents(exponents: jax.Array) -> jax.Array:
    """Float32 powers of two 2^(e - 127) for exponents e in [1, 254], which become a float32's own
    exponent bits."""
    return lax.bitcast_convert_type(exponents.astype(jnp.uint32) << 23, jnp.float32)


def count_blocks(count: int) -> int:
    """Number of blocks in a row of `count` scales; the last may be shorter."""
    return -(-count // BLOCK)


def _by_scale(absmax: jax.Array, count: int) -> jax.Array:
    """[..., blocks] as [..., count]: each block's value for its scales."""
    return jnp.repeat(absmax, BLOCK, axis=-1)[..., :count]


@cache
def _table() -> np.ndarray:
    """The code of each point of the grid from -1 to 1."""
    points = (np.arange(_STEPS + 1, dtype=np.float32) / np.float32(_STEPS)) * np.float32(
        2
    ) - np.float32(1)
    # The two map values around each grid point; the nearer wins, ties go down.
    above = np.clip(np.searchsorted(DYNAMIC_MAP, points), 1, len(DYNAMIC_MAP) - 1)
    # Clipped to 1, since the first map value lies above -1, the first grid point.
    low, high = DYNAMIC_MAP[above - 1], DYNAMIC_MAP[above]
    return np.where(points - low <= high - points, above - 1, above).astype(np.uint8)
