"""Scales that are quantized themselves, as in QLoRA (arXiv:2305.14314, section 3, "double quantization")."""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from research.weights.dynamic_map import DYNAMIC_MAP

BLOCK = 256  # scales that share a second scale
_STEPS = 65535  # of the grid on which bitsandbytes' CPU library looks codes up


@partial(jax.tree_util.register_dataclass, data_fields=["codes", "absmax", "offset"], meta_fields=["count"])
@dataclass(frozen=True)
class QuantizedScales:
    """`count` scales in a row, the last axis of [..., count], in blocks of 256: scale = map[code] * absmax + offset.

    `codes` uint8 [..., blocks, 256], the last block filled up; `absmax` float32 [..., blocks, 1]; `offset` float32
    [..., 1, 1], the scales' mean.
    """

    codes: jax.Array
    absmax: jax.Array
    offset: jax.Array
    count: int

    def dense(self) -> jax.Array:
        """The scales, float32 [..., count]."""
        values = jnp.asarray(DYNAMIC_MAP)[self.codes.astype(jnp.int32)] * self.absmax + self.offset
        return values.reshape(*values.shape[:-2], -1)[..., : self.count]

    def nbits(self) -> int:
        """Bits of storage: of the codes that mean something, and of the floats."""
        rows = math.prod(self.codes.shape[:-2])
        return rows * self.count * 8 + 32 * (self.absmax.size + self.offset.size)


def quantize_scales(scales: jax.Array) -> QuantizedScales:
    """The scales float32 [..., count] in 8 bits each; bitsandbytes' CPU arithmetic to the bit but for the mean."""
    count = scales.shape[-1]
    offset = jnp.mean(scales, axis=-1, keepdims=True)
    centred = jnp.pad(scales - offset, [(0, 0)] * (scales.ndim - 1) + [(0, -count % BLOCK)])
    blocks = centred.reshape(*scales.shape[:-1], -1, BLOCK)
    absmax = jnp.max(jnp.abs(blocks), axis=-1, keepdims=True)
    scaled = jnp.clip(blocks * jnp.where(absmax == 0, 0, 1 / jnp.where(absmax == 0, 1, absmax)), -1, 1)
    # Not to the nearest code of the value itself but of the nearest point of a grid.
    index = jnp.floor((scaled + 1) * 0.5 * _STEPS + 0.5).astype(jnp.int32)
    codes = jnp.where(absmax == 0, 0, jnp.asarray(_table())[index]).astype(jnp.uint8)
    return QuantizedScales(codes, absmax, offset[..., None], count)


def _table() -> np.ndarray:
    """The code of each point of the grid from -1 to 1."""
    points = (np.arange(_STEPS + 1, dtype=np.float32) / np.float32(_STEPS)) * np.float32(2) - np.float32(1)
    above = np.clip(np.searchsorted(DYNAMIC_MAP, points), 1, len(DYNAMIC_MAP) - 1)
    low, high = DYNAMIC_MAP[above - 1], DYNAMIC_MAP[above]
    return np.where(points - low <= high - points, above - 1, above).astype(np.uint8)
