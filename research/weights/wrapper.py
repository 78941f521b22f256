"""Leaves that lie on another one, or on an array, and what both of these have in common."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from research.ops import einsum as ops
from research.weights.leaf import Leaf


class Wrapper(Leaf, Protocol):
    """A leaf over a `base` (an array or another leaf) of the same shape."""

    base: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the base."""
        return self.base.shape


def dense(w: Any) -> jax.Array:
    """An array or a leaf as a float32 array."""
    # Wrappers over an array and over a leaf read the same through these two functions.
    return w.astype(jnp.float32) if isinstance(w, jax.Array) else w.dense()


def gathered(w: Any) -> Any:
    """An array or a leaf with the mesh axes that only store it gathered."""
    return ops.gather(w) if isinstance(w, jax.Array) else w.gathered()
