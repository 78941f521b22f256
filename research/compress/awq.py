"""Activation-aware weight quantization (arXiv:2306.00978, section 3.2): inputs that are large on
average are rounded more finely.

    s = mean |x|^e,   e in [0, 1] with the least error of (x / s) Q(s W)   (equations 4 and 5)

As in the released code, s is scaled to sqrt(max s * min s) = 1. Its search for clipped ranges is
left out.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from research.compress.observe import Inputs, output_error
from research.weights.quantized import quantize_array

GRID = 20  # exponents tried, 0 among them: never worse than rounding to nearest on what is observed
_LEAST = 1e-4  # of a mean


@partial(jax.jit, static_argnames=("format", "group"))
def search(
    observed: Inputs, weights_IO: Sequence[jax.Array], format: str, group: int | None = None
) -> jax.Array:
    """The factor of each input, float32 [I], with the least squared error of all outputs of the
    weights that share it."""

    def _factors(exponent):
        # An input that is never used would get the factor 0, by which the other side is divided.
        powers_I = jnp.maximum(observed.mean_I, _LEAST) ** exponent
        return powers_I / jnp.sqrt(powers_I.max() * powers_I.min())

    def _loss(exponent):
        rounded = [_rounded(w_IO, _factors(exponent), format, group) for w_IO in weights_IO]
        # Errors of outputs and not of weights: an input that is always small may be rounded
        # badly.
        return sum(
            output_error(observed.gram_II, made_IO - w_IO)
            for made_IO, w_IO in zip(rounded, weights_IO)
        )

    # `lax.map` tries one exponent after another: a batched search would hold all rounded weights.
    exponents = jnp.arange(GRID) / GRID
    # The first of equal ones wins, so the smallest exponent: the least change.
    return _factors(exponents[jnp.argmin(jax.lax.map(_loss, exponents))])


def _rounded(w_IO: jax.Array, factors_I: jax.Array, format: str, group: int | None) -> jax.Array:
    return (
        # Factors on the weight are undone on its inputs, so the two cancel but for the rounding
        # between.
        quantize_array(w_IO * factors_I[:, None], format, inputs=1, group=group).dense()
        / factors_I[:, None]
    )
