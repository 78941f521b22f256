"""Normalisation over the last axes, in float32 whatever the activations are."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from research.devices.backend import platform
from research.scopes import scope


def _from_input(normed: Callable[..., jax.Array], *arrays: jax.Array | None) -> jax.Array:
    """`normed(*arrays)`, which on accelerators keeps its arguments for the backward pass and
    nothing else: the float32 activations that its gradient reads are made again, in the kernel that
    reads them. By the compilers' count of memory; nothing was timed. A CPU keeps those, and the
    order of its sums."""
    if platform() == "cpu":
        return normed(*arrays)
    # prevent_cse=False as in `stack._remat`: recomputed layers need not make them twice.
    return jax.checkpoint(normed, prevent_cse=False)(*arrays)


@scope("norm")
def rms_norm(
    x: jax.Array, scale: jax.Array, eps: float, offset: float = 0.0, *, axes: int = 1
) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * (offset + scale), over as many last axes as `axes` says, in the
    dtype of `x` (arXiv:1910.07467, eq. 4). Gemma's checkpoints store scale - 1, hence an offset of
    1."""

    def _normed(x: jax.Array, scale: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        # One reciprocal for each token and a product for each element, instead of as many
        # divisions.
        over = tuple(range(-axes, 0))
        inverse = lax.rsqrt(jnp.mean(wide * wide, axis=over, keepdims=True) + eps)
        scale = _row(scale, x)
        # The scale is applied in float32 and the result rounded once; offset 0 leaves out an
        # addition.
        return (wide * inverse * (offset + scale if offset else scale)).astype(x.dtype)

    return _from_input(_normed, x, scale)


@scope("norm")
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float) -> jax.Array:
    """(x - mean) / sqrt(var + eps) * scale + bias, over the last axis, in the dtype of `x`
    (arXiv:1607.06450)."""

    def _normed(x: jax.Array, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
        wide = x.astype(jnp.float32)
        # Two passes: E[x^2] - E[x]^2 would cancel where the mean is large against the deviation.
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        inverse = lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)
        normed = centred * inverse * _row(scale, x)
        return (normed if bias is None else normed + _row(bias, x)).astype(x.dtype)

    return _from_input(_normed, x, scale, bias)


def _row(vector: jax.Array, x: jax.Array) -> jax.Array:
    """`vector` in float32 with leading axes of 1, to broadcast against `x`."""
    return jnp.expand_dims(vector.astype(jnp.float32), tuple(range(x.ndim - vector.ndim)))
