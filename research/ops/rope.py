"""Rotary positions (arXiv:2104.09864) in the half-split layout of Hugging Face checkpoints."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from research.ops.rope_scaling import RopeScaling, scaled
from research.scopes import scope


@dataclass(frozen=True)
class Rates:
    """How fast the pairs of a head turn: `size` elements of the head are rotated, with the base
    `theta` and its scaling to longer texts."""

    size: int
    theta: float
    scaling: RopeScaling = RopeScaling()

    def rotation(
        self, positions_BT: jax.Array, lengths_BT: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """cos and sin for `rotate`. `lengths_BT` are the lengths of the texts that the tokens are
        of, for a scaling that depends on them (`RopeScaling.by_length`)."""
        freq = frequencies(self.size, self.theta, self.scaling, lengths_BT)
        return rotation(positions_BT, freq, self.scaling.multiplier)


def frequencies(
    size: int,
    theta: float,
    scaling: RopeScaling = RopeScaling(),
    lengths: jax.Array | None = None,
) -> np.ndarray | jax.Array:
    """Radians per position of each of size / 2 pairs, float64 [size / 2]. With the `lengths` [...]
    of texts, for a scaling that depends on them, float32 [..., size / 2]."""
    # In float64, rounded once in `rotation`: positions multiply the error of a frequency.
    # theta^(-2i / H) for pair i (section 3.2.2): the first pair turns by one radian a token.
    freq = theta ** -(np.arange(0, size, 2, dtype=np.float64) / size)
    return scaled(freq, theta, scaling, lengths)


@scope("rotation")
def rotation(
    positions_BT: jax.Array, freq: np.ndarray | jax.Array, multiplier: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """cos and sin for `rotate`, float32 [B, T, 1, H], computed once for all layers; sin is negative
    in the first half. `freq` is [H / 2] or, where texts differ, [B, T, H / 2]."""
    freq = jnp.asarray(freq, jnp.float32)
    freq = freq[None, None, None, :] if freq.ndim == 1 else freq[:, :, None, :]
    angles = positions_BT[:, :, None, None].astype(jnp.float32) * freq
    # Both halves of a head have the same angles, one pair to each of H / 2.
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if multiplier != 1.0:
        cos, sin = cos * multiplier, sin * multiplier
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


@scope("rotation")
def rotate(x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Each pair (x[i], x[i + R/2]) of the first R elements of a head rotated by its angle, in the
    dtype of `x`; `cos` and `sin` are those of `rotation`, R wide. The other elements stay."""
    size = cos.shape[-1]
    part = size < x_BTNH.shape[-1]
    # (x1 cos - x2 sin, x2 cos + x1 sin) for the halves x1 and x2, in two products and a sum.
    wide = (x_BTNH[..., :size] if part else x_BTNH).astype(jnp.float32)
    # The roll swaps the halves; the sign of the rotation is in `sin`.
    turned = (wide * cos + jnp.roll(wide, size // 2, axis=-1) * sin).astype(x_BTNH.dtype)
    return jnp.concatenate([turned, x_BTNH[..., size:]], axis=-1) if part else turned
