"""Elementwise functions as one loop each."""

from collections.abc import Callable
from functools import partial

import jax
from jax import lax

from research.ops.kernels.attention import platform


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def apart(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """`function(*arrays)`, elementwise, computed once in each direction.

    Left to itself XLA's CPU backend fuses an activation and its derivative into the strided copies of the products that
    use them, and computes them again in each; between barriers they run once, vectorised, over contiguous memory. On
    accelerators, where fusing into the products is what one wants, this is the plain function.
    """
    return function(*arrays)


def _forward(function, *arrays):
    arrays = barrier(arrays)
    return barrier(function(*arrays)), arrays


def _backward(function, arrays, dy):
    *arrays, dy = barrier((*arrays, dy))
    return barrier(jax.vjp(function, *arrays)[1](dy))


apart.defvjp(_forward, _backward)


def barrier(arrays):
    """`arrays`, which XLA's CPU backend will not fuse or fold across; as they are on accelerators."""
    return lax.optimization_barrier(arrays) if platform() == "cpu" else arrays
