"""Rotary positions (arXiv:2104.09864) in the half-split layout of Hugging Face checkpoints, with
Llama 3's scaling."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretch of the slow frequencies (arXiv:2407.21783, section 3.4; constants of its
    released code).

    Wavelengths beyond `original_length / low_factor` are multiplied by `factor`, those below
    `original_length / high_factor` stay, those between are interpolated. A factor of 1 changes
    nothing.
    """

    factor: float = 1.0
    low_factor: float = 1.0
    high_factor: float = 4.0
    original_length: int = 8192


def frequencies(head_size: int, theta: float, scaling: RopeScaling = RopeScaling()) -> np.ndarray:
    """Radians per position of each pair, float64 [H / 2]."""
    freq = theta ** -(np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    if scaling.factor == 1.0:
        return freq
    wavelength = 2 * math.pi / freq
    smooth = (scaling.original_length / wavelength - scaling.low_factor) / (
        scaling.high_factor - scaling.low_factor
    )
    smooth = np.clip(smooth, 0.0, 1.0)
    return (1 - smooth) * freq / scaling.factor + smooth * freq


def rotation(positions_BT: jax.Array, freq: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """cos and sin for `rotate`, float32 [B, T, 1, H], computed once for all layers; sin is negative
    in the first half."""
    angles = (
        positions_BT[:, :, None, None].astype(jnp.float32)
        * jnp.asarray(freq, jnp.float32)[None, None, None, :]
    )
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


def rotate(x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Each pair (x[i], x[i + H/2]) turned by its angle, in the dtype of `x`."""
    wide = x_BTNH.astype(jnp.float32)
    return (wide * cos + jnp.roll(wide, x_BTNH.shape[-1] // 2, axis=-1) * sin).astype(x_BTNH.dtype)
