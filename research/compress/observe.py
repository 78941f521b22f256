"""What comes into a weight: a leaf that contracts as the weight it holds and notes its inputs."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from research import tree
from research.ops.einsum import einsum, take
from research.ops.equation import parse
from research.weights.leaf import Wrapper, dense, gathered


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["count", "total_I", "largest_I", "gram_II"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Inputs:
    """Of `count` inputs x_MI of a weight, in float32: sums and maxima of |x| over M, and x^T x."""

    count: jax.Array
    total_I: jax.Array
    largest_I: jax.Array
    gram_II: jax.Array

    @property
    def mean_I(self) -> jax.Array:
        """Mean of |x|."""
        return self.total_I / self.count

    def __add__(self, other: "Inputs") -> "Inputs":
        """Of both."""
        return Inputs(
            self.count + other.count,
            self.total_I + other.total_I,
            jnp.maximum(self.largest_I, other.largest_I),
            self.gram_II + other.gram_II,
        )


@dataclass(frozen=True)
class Observed(Wrapper):
    """A weight that appends the `Inputs` of each product to `seen`. Made, used and read inside one
    traced function; it is no pytree, so that it cannot leave it."""

    base: Any
    seen: list[Inputs] = field(default_factory=list)

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """`eqn` of `x` and the weight."""
        self.seen.append(inputs_of(eqn, x))
        return einsum(eqn, x, self.base)

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of a table [V, D] at `ids`, float32 [..., D]: no inputs to note."""
        return take(self.base, ids, jnp.float32)

    def grouped(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
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
    """What is summed over in `eqn`, with the inputs I in the order of the weight's axes."""
    of_x, of_w, of_y = parse(eqn)
    inner = [of_x.index(letter) for letter in of_w if letter not in of_y]
    outer = [at for at in range(x.ndim) if at not in inner]
    x_MI = jnp.transpose(x, outer + inner).reshape(-1, *(x.shape[at] for at in inner))
    x_MI = x_MI.reshape(x_MI.shape[0], -1).astype(jnp.float32)
    size = jnp.abs(x_MI)
    return Inputs(jnp.float32(len(x_MI)), size.sum(0), size.max(0), x_MI.T @ x_MI)


def output_error(gram_II: jax.Array, error_IO: jax.Array) -> jax.Array:
    """Sum over all inputs and outputs of (x error)^2, of the inputs with this gram matrix."""
    return jnp.sum(error_IO * (gram_II @ error_IO))
