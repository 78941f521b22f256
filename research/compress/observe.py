"""The inputs of a weight: a leaf that computes what its weight does and notes what it is given."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from research import tree
from research.ops.einsum import einsum, take
from research.ops.kernels.equation import parse
from research.weights.wrapper import Wrapper, dense, gathered


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["count", "total_I", "largest_I", "gram_II"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Inputs:
    """Statistics of `count` inputs x_MI of a weight, float32: over M the sum of |x|, the largest
    |x|, and x^T x."""

    count: jax.Array
    total_I: jax.Array
    largest_I: jax.Array
    gram_II: jax.Array

    @property
    def mean_I(self) -> jax.Array:
        """Mean of |x|."""
        return self.total_I / self.count

    def __add__(self, other: "Inputs") -> "Inputs":
        """The statistics of both sets of inputs together."""
        return Inputs(
            self.count + other.count,
            self.total_I + other.total_I,
            jnp.maximum(self.largest_I, other.largest_I),
            self.gram_II + other.gram_II,
        )


@dataclass(frozen=True)
class Observed(Wrapper):
    """A weight that appends the `Inputs` of each product to `seen`. It is created, used and read
    inside one traced function, and is no pytree, so that it cannot leave that function."""

    base: Any
    seen: list[Inputs] = field(default_factory=list)

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """`eqn` of `x` and the weight."""
        # A list inside a frozen leaf: tracing runs this line once for each product.
        self.seen.append(inputs_of(eqn, x))
        return einsum(eqn, x, self.base)

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of a table [V, D] at `ids`, float32 [..., D]: no inputs to note."""
        return take(self.base, ids, jnp.float32)

    def grouped(self, x: jax.Array, sizes: jax.Array, implementation: str = "auto") -> jax.Array:
        """Refused: an expert's inputs are those of some tokens, and which is not known here."""
        raise ValueError("the inputs of experts cannot be observed; set --method=rtn")

    def gathered(self) -> "Observed":
        """This leaf, over the gathered weight and with the same notes."""
        return Observed(gathered(self.base), self.seen)

    def dense(self, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """The weight as an array."""
        return dense(self.base).astype(dtype)

    def nbits(self) -> int:
        """Bits of storage of the weight."""
        return tree.nbits(self.base)


def inputs_of(eqn: str, x: jax.Array) -> Inputs:
    """The statistics of what `eqn` sums over, with the inputs I in the order of the weight's
    axes."""
    of = parse(eqn)
    inner = [of.x.index(letter) for letter in of.inputs]
    outer = [axis for axis in range(x.ndim) if axis not in inner]
    # Inputs may be several axes, such as heads and their size, which become one.
    x_MI = jnp.transpose(x, outer + inner).reshape(-1, *(x.shape[axis] for axis in inner))
    x_MI = x_MI.reshape(x_MI.shape[0], -1).astype(jnp.float32)
    # Errors of outputs are quadratic in the inputs, so x^T x is all that they need of them.
    size = jnp.abs(x_MI)
    return Inputs(jnp.float32(len(x_MI)), size.sum(0), size.max(0), x_MI.T @ x_MI)


def output_error(gram_II: jax.Array, error_IO: jax.Array) -> jax.Array:
    """The sum of (x error)^2 over all outputs and over the inputs x with this gram matrix x^T x."""
    # trace(E^T G E), without the matrix [O, O] whose diagonal it sums.
    return jnp.sum(error_IO * (gram_II @ error_IO))
