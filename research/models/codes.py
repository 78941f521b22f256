"""Keys and values in 8 or 4 bits: keys by channel, values by token (arXiv:2402.02750, section 3).

A few channels of keys are far larger than the others in every token, so the tokens of a page share
a scale for each channel. Values have no such channels, and each token has its own.

Letters: s slots of a page, K key heads, H head size.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

BITS = (8, 4)


@partial(
    jax.tree_util.register_dataclass, data_fields=["codes", "scale", "low"], meta_fields=["bits"]
)
@dataclass(frozen=True)
class Codes:
    """Rounded numbers [..., s, K, H]: a code x stands for `low` + `scale` x.

    codes       uint8 [..., s, K, H], with 4 bits [..., s, K, H / 2]: the first half of a head in
                the low bits
    scale, low  bfloat16, [..., 1, K, H] for keys and [..., s, K, 1] for values
    """

    codes: jax.Array
    scale: jax.Array
    low: jax.Array
    bits: int

    def dense(self) -> jax.Array:
        """The numbers that the codes stand for, float32."""
        codes = self.codes
        if self.bits == 4:
            codes = jnp.concatenate([codes & 15, codes >> 4], axis=-1)
        return self.low.astype(jnp.float32) + codes * self.scale.astype(jnp.float32)


def rounded(x: jax.Array, axis: int, bits: int) -> Codes:
    """`x` [..., s, K, H] in codes, with a scale and a least number for all along `axis`. What they
    stand for is at most half a scale and 2^-8 of the numbers' reach away, the reach being counted
    from `low`."""
    x, steps = x.astype(jnp.float32), 2**bits - 1
    least = jnp.min(x, axis=axis, keepdims=True)
    low = least.astype(jnp.bfloat16).astype(jnp.float32)
    # Rounded down, so that no number lies below what the codes can say.
    low = jnp.where(low > least, low - jnp.abs(low) * 2**-7, low).astype(jnp.bfloat16)
    reach = jnp.max(x, axis=axis, keepdims=True) - low.astype(jnp.float32)
    scale = (reach / steps).astype(jnp.bfloat16)
    size = jnp.where(scale == 0, 1, scale).astype(jnp.float32)
    codes = jnp.clip(jnp.round((x - low.astype(jnp.float32)) / size), 0, steps).astype(jnp.uint8)
    if bits == 4:
        first, second = jnp.split(codes, 2, axis=-1)
        codes = first | (second << 4)
    return Codes(codes, scale, low, bits)
