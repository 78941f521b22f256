"""Rotary positions (arXiv:2104.09864) in the half-split layout of Hugging Face checkpoints, and
their scaling to longer texts."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from research.scopes import scope

SCALINGS = ("llama3", "linear")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are lowered for texts longer than the model was first trained on.

    kind "llama3" (arXiv:2407.21783, section 3.4; constants of the released code): wavelengths
    longer than `original_length / low_factor` are multiplied by `factor`, those shorter than
    `original_length / high_factor` stay, and between them frequencies are interpolated. kind
    "linear" (arXiv:2306.15595): every frequency is divided by `factor`, and the other numbers have
    no effect. A factor of 1 changes nothing.
    """

    factor: float = 1.0
    low_factor: float = 1.0
    high_factor: float = 4.0
    original_length: int = 8192
    kind: str = "llama3"

    def __post_init__(self):
        if self.kind not in SCALINGS:
            raise ValueError(
                f"model.rope_scaling.kind={self.kind!r}; choose one of {', '.join(SCALINGS)}"
            )
        for name in ("factor", "low_factor", "high_factor", "original_length"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"model.rope_scaling.{name}={getattr(self, name)} must be positive"
                )
        if not self.low_factor < self.high_factor:
            raise ValueError(
                f"model.rope_scaling.low_factor={self.low_factor} must be below "
                f"high_factor={self.high_factor}"
            )


def frequencies(head_size: int, theta: float, scaling: RopeScaling = RopeScaling()) -> np.ndarray:
    """Radians per position of each pair, float64 [H / 2]."""
    # In float64, rounded once in `rotation`: positions multiply the error of a frequency.
    # theta^(-2i / H) for pair i (section 3.2.2): the first pair turns by one radian a token.
    freq = theta ** -(np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    if scaling.factor == 1.0:
        return freq
    if scaling.kind == "linear":
        return freq / scaling.factor
    wavelength = 2 * math.pi / freq
    # How many wavelengths the original text has room for, between the two bounds as 0 to 1.
    smooth = (scaling.original_length / wavelength - scaling.low_factor) / (
        scaling.high_factor - scaling.low_factor
    )
    # Clipped: 0 for wavelengths over original_length / low_factor, 1 for those under / high_factor.
    smooth = np.clip(smooth, 0.0, 1.0)
    return (1 - smooth) * freq / scaling.factor + smooth * freq


@scope("rotation")
def rotation(positions_BT: jax.Array, freq: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """cos and sin for `rotate`, float32 [B, T, 1, H], computed once for all layers; sin is negative
    in the first half."""
    angles = (
        positions_BT[:, :, None, None].astype(jnp.float32)
        * jnp.asarray(freq, jnp.float32)[None, None, None, :]
    )
    # Both halves of a head have the same angles, one pair to each of H / 2.
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


@scope("rotation")
def rotate(x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Each pair (x[i], x[i + H/2]) rotated by its angle, in the dtype of `x`; `cos` and `sin` are
    those of `rotation`."""
    # (x1 cos - x2 sin, x2 cos + x1 sin) for the halves x1 and x2, in two products and a sum.
    wide = x_BTNH.astype(jnp.float32)
    # The roll swaps the halves; the sign of the rotation is in `sin`.
    return (wide * cos + jnp.roll(wide, x_BTNH.shape[-1] // 2, axis=-1) * sin).astype(x_BTNH.dtype)
