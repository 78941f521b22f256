"""The protocol of leaves: objects that may stand in a parameter tree in the place of an array."""

import math
from abc import abstractmethod
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from research import tree
from research.ops import einsum as ops


class Leaf(Protocol):
    """A weight that contracts itself: quantized, adapted, stored in another layout, observed, ...

    A model calls `research.ops.einsum.{einsum, take, grouped}`, which pass a leaf's work to the
    leaf, so a model never knows which leaf it holds. Leaves nest: QLoRA is a `Lora` over a
    `Quantized`. A new leaf inherits from this class, is a registered dataclass, and gives `shape`,
    `einsum`, `dense` and `gathered`; the other methods follow from these and are overridden where
    the leaf can do better than making itself dense. The laws, which tests/weights/test_leaf.py
    checks for every leaf `w` of the package:

        w.einsum(eqn, x)          == einsum(eqn, x, w.dense())     for activations x
        w.take(ids)               == w.dense()[ids]                for a table [V, D]
        w.gathered().rows(v, n)   == w.dense()[v : v + n]          for a table [V, D]
        w.grouped(x, sizes)       == grouped(x, w.dense(), sizes)  for experts [E, I, O]
        w.gathered()              computes what w computes
        shape, ndim, size         are those of w.dense()

    The first holds up to float order, and up to the rounding of the activations in leaves that
    quantize them. If all arrays of a leaf have one more leading axis, the leaf is a stack of
    weights, and `jax.tree.map(lambda part: part[i], w)` is weight i.
    """

    # True if nothing in the leaf is trained and `einsum` is the product with `dense`. The loss then
    # reads a head's table block by block with `rows`, and computes no gradient for it.
    frozen: ClassVar[bool] = False

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight that the leaf represents."""

    @property
    def ndim(self) -> int:
        """The number of axes of that weight."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements of that weight."""
        return math.prod(self.shape)

    @abstractmethod
    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """`eqn`, such as "BTD,DF->BTF", of activations and this weight, in the dtype of `x`."""

    @abstractmethod
    def dense(self, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """The weight as an array."""

    @abstractmethod
    def gathered(self) -> "Leaf | jax.Array":
        """This leaf, or an array, with the mesh axes that only store it gathered, as the products
        of a `shard_map` want it."""

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of a table [V, D] at `ids`, float32 [..., D]."""
        return ops.take(self.dense(), ids, jnp.float32)

    def rows(self, first: jax.Array, count: int, dtype: jnp.dtype) -> jax.Array:
        """Rows `first` to `first + count` of a gathered table [V, D], as an array [count, D]."""
        return lax.dynamic_slice_in_dim(self.dense(dtype), first, count)

    def grouped(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        """Rows [M, I] in groups of `sizes` [E], each group times its expert's matrix in this weight
        [E, I, O], as [M, O]."""
        return ops.grouped(x, self.dense(), sizes)

    def nbits(self) -> int:
        """Bits of storage of all arrays in the leaf."""
        return tree.nbits(self)


class Wrapper(Leaf, Protocol):
    """A leaf over a `base` (an array or another leaf) of the same shape."""

    base: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the base."""
        return self.base.shape


def dense(w: Any) -> jax.Array:
    """An array or a leaf as a float32 array."""
    return w.astype(jnp.float32) if isinstance(w, jax.Array) else w.dense()


def gathered(w: Any) -> Any:
    """An array or a leaf with the mesh axes that only store it gathered."""
    return ops.gather(w) if isinstance(w, jax.Array) else w.gathered()
