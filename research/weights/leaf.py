"""The protocol of leaves: objects that may stand in a parameter tree in the place of an array."""

import math
from abc import abstractmethod
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from research import tree
from research.ops import einsum as ops
from research.ops.grouped import grouped


class Leaf(Protocol):
    """A weight that contracts itself: quantized, adapted, stored in another layout, observed, ...

    A model calls `research.ops.einsum.{einsum, take}` and `research.ops.grouped.grouped`, which
    pass a leaf's work to the leaf, so a model never knows which leaf it holds. Leaves nest: QLoRA
    is a `Lora` over a `Quantized`. A new leaf is a registered dataclass that inherits from this
    class and gives `shape`, `einsum`, `dense` and `gathered`; it overrides the other methods where
    it can do better than making itself dense. The laws, checked for every leaf `w` in
    tests/weights/test_leaf.py:

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

    # Nothing in it is trained, and `einsum` multiplies by `dense`: losses read a head by `rows`.
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
        """This leaf, or an array, with the mesh axes that only store it gathered."""

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of a table [V, D] at `ids`, float32 [..., D]."""
        return ops.take(self.dense(), ids, jnp.float32)

    def rows(self, first: jax.Array, count: int, dtype: jnp.dtype) -> jax.Array:
        """Rows `first` to `first + count` of a gathered table [V, D], as an array [count, D]."""
        return lax.dynamic_slice_in_dim(self.dense(dtype), first, count)

    def grouped(self, x: jax.Array, sizes: jax.Array, implementation: str = "auto") -> jax.Array:
        """Rows [M, I] in groups of `sizes` [E], times an expert each in this weight [E, I, O]."""
        return grouped(x, self.dense(), sizes, implementation=implementation)

    def nbits(self) -> int:
        """Bits of storage of all arrays in the leaf."""
        return tree.nbits(self)
