"""Elementwise functions: soft caps, and `apart`, which keeps a function in a loop of its own."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from research.devices.backend import barrier


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
    """`cap` tanh(x / cap), which keeps every element within -cap..cap (arXiv:2408.00118, section
    2); `x` itself for a cap of 0."""
    return cap * jnp.tanh(x / cap) if cap else x


def soft_cap_slope(capped: jax.Array, cap: float) -> jax.Array | float:
    """The derivative of `soft_cap` from what it returned, 1 - (capped / cap)^2; 1.0 for no cap."""
    # d tanh(u) / du = 1 - tanh(u)^2.
    return 1 - jnp.square(capped / cap) if cap else 1.0


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def apart(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """`function(*arrays)` for an elementwise function: computed in float32, returned in the dtype
    of the arrays, and on a CPU kept apart from the operations around it by barriers.

    Without barriers XLA's CPU backend fuses an activation and its derivative into the strided
    copies of the products that use them, and computes them again in each. With them each runs once,
    vectorised over contiguous memory. In bfloat16 the backend would round after every operation of
    the function, five times the work. Accelerators gain from that fusion and get no barriers.
    """
    return _widened(function)(*arrays)


def _forward(function, *arrays):
    arrays = barrier(arrays)
    return barrier(_widened(function)(*arrays)), arrays


def _backward(function, arrays, dy):
    # The derivative is computed anew from the inputs, which are kept anyway: no array is saved
    # for it.
    *arrays, dy = barrier((*arrays, dy))
    return barrier(jax.vjp(_widened(function), *arrays)[1](dy))


apart.defvjp(_forward, _backward)


def _widened(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    # float32 in and the arrays' own type out: one rounding, at the end.
    return lambda *arrays: function(*(x.astype(jnp.float32) for x in arrays)).astype(
        arrays[0].dtype
    )
