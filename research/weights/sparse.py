"""Weights whose zeros stay zeros: a leaf over an array, codes or an adapted weight.

The zeros of the innermost weight are the mask, so there is no second array that could disagree
with it, be left out of a checkpoint, or be sharded otherwise:

    y = x (W * [W0 != 0]),    dW = (x^T dy) * [W0 != 0]

where W0 is the array or the codes below all adapters, and W what lies on them. `Sparse` is always
the outermost leaf: an adapter goes below it (`research.weights.rules.attach`), so that what merging
gives is what the adapted model computes, and has the same zeros.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import tree
from research.ops.einsum import einsum
from research.weights.wrapper import Wrapper, dense, gathered


@partial(jax.tree_util.register_dataclass, data_fields=["base"], meta_fields=["pattern"])
@dataclass(frozen=True)
class Sparse(Wrapper):
    """A weight, an array or another leaf, whose zeros stay zeros under gradients and adapters.

    `pattern` (N, M) says that of M neighbouring inputs of an output at most N are not zero, None
    that the zeros are anywhere; `check_pattern` holds a weight to that.
    """

    base: Any
    pattern: tuple[int, int] | None = None

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """`eqn` of `x` and the masked weight, in the dtype of `x`. Codes without an adapter are
        multiplied as they are: nothing moves their zeros."""
        if _is_frozen(self.base):
            return einsum(eqn, x, self.base)
        return einsum(eqn, x, self._masked())

    def gathered(self) -> "Sparse":
        """This leaf with the mesh axes that only store it gathered."""
        return replace(self, base=gathered(self.base))

    def dense(self, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """The masked weight as an array."""
        return self._masked().astype(dtype)

    def mask(self) -> jax.Array:
        """True where the innermost weight is not zero, in the weight's shape."""
        return jax.lax.stop_gradient(dense(innermost(self.base))) != 0

    def nbits(self) -> int:
        """Bits of storage as it lies in memory, zeros included."""
        return tree.nbits(self.base)

    def packed_nbits(self) -> int:
        """Bits of a storage that leaves the zeros out: the kept values, in as many bits as each has
        now (scales and adapters included), and one bit a weight that says where they are."""
        kept = int(np.count_nonzero(np.asarray(self.mask())))
        return -(-self.nbits() * kept // self.size) + self.size

    def _masked(self) -> jax.Array:
        w = self.base if isinstance(self.base, jax.Array) else dense(self.base)
        return jnp.where(self.mask(), w, 0)


def innermost(w: Any) -> Any:
    """The array or the codes below all wrappers."""
    while not isinstance(w, jax.Array) and hasattr(w, "base"):
        w = w.base
    return w


def count_nonzero(w: Any) -> int:
    """How many numbers of an array or a leaf are not zero."""
    # numpy's count is a Python int; JAX's int32 would overflow on a tree's worth of weights.
    return int(np.count_nonzero(np.asarray(dense(w))))


def check_pattern(path: str, w_IO: jax.Array, pattern: tuple[int, int]) -> None:
    """ValueError unless of M neighbouring inputs of each output of [I, O] at most N are not 0."""
    kept, of = pattern
    if len(w_IO) % of:
        raise ValueError(
            f"{path} has {len(w_IO)} inputs, which groups of {of} do not divide; leave it out of "
            f"the rules, or take a share such as {kept / of:g} in place of {kept}:{of}"
        )
    counts = np.count_nonzero(np.asarray(w_IO).reshape(-1, of, w_IO.shape[1]), axis=1)
    if counts.max(initial=0) > kept:
        raise ValueError(
            f"{path} has {counts.max()} of {of} neighbouring inputs that are not zero, wanted "
            f"{kept}:{of}; prune it with that pattern first"
        )


def _is_frozen(w: Any) -> bool:
    return not isinstance(w, jax.Array) and w.frozen
