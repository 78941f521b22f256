"""Products of codes with codes: how tokens are quantized, and what a sum of products of 8-bit codes
stands for."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.devices.backend import platform
from research.ops.einsum import contract
from research.ops.kernels.equation import parse
from research.ops.lookup import reciprocal
from research.parallel.placement import spec_entries
from research.weights.quantized import Quantized


def quantize_tokens(
    eqn: str, x: jax.Array, dtype: jnp.dtype, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Codes of `x` in `dtype`, and the float32 scale of each token: of the shape of `x`, with 1 for
    the axes that `eqn` sums over.

    Codes are rounded to the nearest. With a key integers are rounded up or down at random, so that
    the mean of a code is exact (arXiv:1502.02551, section 3.2).
    """
    of_x, _, of_y = parse(eqn)
    summed = tuple(axis for axis, letter in enumerate(of_x) if letter not in of_y)
    floating = jnp.issubdtype(dtype, jnp.floating)
    top = float(jnp.finfo(dtype).max if floating else jnp.iinfo(dtype).max)
    x = x.astype(jnp.float32)
    absmax = jnp.max(jnp.abs(x), axis=summed, keepdims=True)
    codes = x * (top * reciprocal(absmax))
    if key is not None:
        sharding = None if jax.sharding.get_abstract_mesh().empty else jax.typeof(x).sharding
        noise = jax.random.uniform(key, x.shape, out_sharding=sharding)
        # The sum of 127 and nearly 1 is 128 in float32.
        codes = jnp.minimum(jnp.floor(codes + noise), top)
    elif not floating:
        codes = jnp.round(codes)
    return codes.astype(dtype), absmax / top


def multiply_codes(eqn: str, codes: jax.Array, scale: jax.Array, w: Quantized) -> jax.Array:
    """`eqn` of quantized tokens and a weight with one scale an output, float32: the sum of products
    of codes, times both scales."""
    w = w.gathered()
    y = sum_codes(eqn, codes, unite_codes(w)) * scale_of_tokens(eqn, scale)
    return y * scale_of_outputs(eqn, w)


def sum_codes(eqn: str, first: jax.Array, second: jax.Array) -> jax.Array:
    """`eqn` of two arrays of codes, float32: sums of integers in int32, of float8 in float32."""
    if not jnp.issubdtype(second.dtype, jnp.floating):
        return contract(eqn, first, second, dtype=jnp.int32).astype(jnp.float32)
    # A CPU has no float8 product of its own, and float32 holds each of its terms exactly.
    if platform() == "cpu":
        first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    return contract(eqn, first, second, dtype=jnp.float32)


def scale_of_tokens(eqn: str, scale: jax.Array) -> jax.Array:
    """The scales that `quantize_tokens` gives for `eqn`, with the axes of its result."""
    of_x, _, of_y = parse(eqn)
    summed = tuple(axis for axis, letter in enumerate(of_x) if letter not in of_y)
    new = tuple(axis for axis, letter in enumerate(of_y) if letter not in of_x)
    return jnp.expand_dims(jnp.squeeze(scale, summed), new)


def scale_of_outputs(eqn: str, w: Quantized) -> jax.Array:
    """The scales of a weight with one an output, with the axes of the result of `eqn`."""
    of_x, _, of_y = parse(eqn)
    outputs = jnp.squeeze(w.scale, (w.group_axis, w.group_axis + 1))
    return jnp.expand_dims(
        outputs, tuple(axis for axis, letter in enumerate(of_y) if letter in of_x)
    )


def unite_codes(w: Quantized) -> jax.Array:
    """The codes of 8 bits in the shape of the weight."""
    if jax.sharding.get_abstract_mesh().empty:
        return w.codes.reshape(w.shape)
    at, entries = w.group_axis, spec_entries(w.codes)
    place = PartitionSpec(*entries[:at], *(None,) * len(w.inputs), *entries[at + 2 :])
    return jnp.reshape(w.codes, w.shape, out_sharding=place)
