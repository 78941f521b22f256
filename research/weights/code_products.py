"""Products of 8-bit codes with 8-bit codes: activations are quantized for each token, and the
integer (or float8) sum is scaled back to the float result."""

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
    """(codes, scale) such that x is about codes * scale: `codes` have the shape of `x` and type
    `dtype` (int8 or a float8), `scale` is float32 with size 1 along the axes that `eqn` sums over.

    Codes are rounded to nearest. With a `key` integers are rounded up or down at random, so that
    the expected code is exact (stochastic rounding, arXiv:1502.02551, section 3.2).

        codes, scale = quantize_tokens("BTD,DF->BTF", x_BTD, jnp.int8)    # scale_BT1
    """
    of_x, _, of_y = parse(eqn)
    # One scale for all values that meet in a sum: only then can it be taken out of the sum.
    summed = tuple(axis for axis, letter in enumerate(of_x) if letter not in of_y)
    floating = jnp.issubdtype(dtype, jnp.floating)
    # Integers are symmetric, -127 to 127: 128 would have no code on the positive side.
    top = float(jnp.finfo(dtype).max if floating else jnp.iinfo(dtype).max)
    x = x.astype(jnp.float32)
    absmax = jnp.max(jnp.abs(x), axis=summed, keepdims=True)
    # `reciprocal` of 0 is 0, so a token of zeros (padding) has codes of 0 and not NaN.
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
    """`eqn` of quantized tokens and an 8-bit weight with one scale for each output, float32: the
    sum of products of codes, times both scales. `codes` and `scale` are those of
    `quantize_tokens`."""
    w = w.gathered()
    # Neither scale depends on a summed letter, so both stand outside the sum.
    y = sum_codes(eqn, codes, unite_codes(w)) * scale_of_tokens(eqn, scale)
    return y * scale_of_outputs(eqn, w)


def sum_codes(eqn: str, first: jax.Array, second: jax.Array) -> jax.Array:
    """`eqn` of two arrays of codes, as float32: integers are summed in int32 (exact), float8 in
    float32."""
    if not jnp.issubdtype(second.dtype, jnp.floating):
        return contract(eqn, first, second, dtype=jnp.int32).astype(jnp.float32)
    # A CPU has no float8 product of its own, and float32 holds each of its terms exactly.
    if platform() == "cpu":
        first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    return contract(eqn, first, second, dtype=jnp.float32)


def scale_of_tokens(eqn: str, scale: jax.Array) -> jax.Array:
    """The scales of `quantize_tokens(eqn, ...)` shaped to multiply the result of `eqn`: [B, T, 1]
    stays [B, T, 1] for "BTD,DF->BTF" and becomes [B, T, 1, 1] for "BTD,DNH->BTNH"."""
    of_x, _, of_y = parse(eqn)
    summed = tuple(axis for axis, letter in enumerate(of_x) if letter not in of_y)
    new = tuple(axis for axis, letter in enumerate(of_y) if letter not in of_x)
    return jnp.expand_dims(jnp.squeeze(scale, summed), new)


def scale_of_outputs(eqn: str, w: Quantized) -> jax.Array:
    """The scales of a weight with one for each output, shaped to multiply the result of `eqn`."""
    of_x, _, of_y = parse(eqn)
    # With one scale for each output there is one group: both group axes have size 1.
    outputs = jnp.squeeze(w.scale, (w.group_axis, w.group_axis + 1))
    return jnp.expand_dims(
        outputs, tuple(axis for axis, letter in enumerate(of_y) if letter in of_x)
    )


def unite_codes(w: Quantized) -> jax.Array:
    """The 8-bit codes of a weight in the weight's own shape: the input axes, one axis [I / G, G] in
    storage, are split again."""
    if jax.sharding.get_abstract_mesh().empty:
        return w.codes.reshape(w.shape)
    at, entries = w.group_axis, spec_entries(w.codes)
    # The split input axes are on every device; JAX asks for the sharding of a reshape that splits
    # an axis.
    place = PartitionSpec(*entries[:at], *(None,) * len(w.inputs), *entries[at + 2 :])
    return jnp.reshape(w.codes, w.shape, out_sharding=place)
