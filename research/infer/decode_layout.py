"""The layout of weights for decoding on a CPU: transposed, and a tuple of layers, not a stack.

Each token's products read every weight once for a few rows, so memory bandwidth is their limit.
In the layout of training XLA's CPU backend stays far below it: a layer sliced out of the stack is
copied for every token, and a column of a [K, N] matrix, which a product's kernel reads, has its
values N apart. Transposed to [N, K] and as the left operand, weights are read in the order of
memory by all threads; 8 rows then take half to two thirds of the time.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.devices.backend import barrier, platform
from research.models.model import Model
from research.ops.kernels.equation import parse
from research.tree import Tree
from research.weights.leaf import Leaf

# Number of leading axes that a product contracts, by the weight's name. Weights that are not named
# here stay arrays.
_CONTRACTED = {"query": 1, "key": 1, "value": 1, "out": 2, "gate": 1, "up": 1, "down": 1}


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["transposed_NK"],
    meta_fields=["sizes", "contracted"],
)
@dataclass(frozen=True)
class DecodeWeight(Leaf):
    """A leaf whose matrix [K, N] is stored transposed, [N, K].

    `sizes` is the shape of the original weight. `contracted` are the axes of that shape that make
    up K: the leading ones or, for a table, the last one.
    """

    transposed_NK: jax.Array
    sizes: tuple[int, ...]
    contracted: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return self.sizes

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """The product over K in the dtype of `x`. `x` must end in the axes of K, and the result
        ends in those of N; ValueError for another equation."""
        of_x, of_w, of_y = parse(eqn)
        inner = "".join(of_w[axis] for axis in self.contracted)
        outer = "".join(letter for letter in of_w if letter not in inner)
        rows = of_x.removesuffix(inner)
        if (of_x, of_y) != (rows + inner, rows + outer):
            raise ValueError(
                f"einsum {eqn!r}: the weight contracts {inner!r}, which must end {of_x!r}, "
                f"and leaves {outer!r}"
            )
        x_MK = x.reshape(-1, self.transposed_NK.shape[1])
        y_NM = jax.lax.dot_general(
            self.transposed_NK.astype(x.dtype), x_MK, (((1,), (1,)), ((), ()))
        )
        # Without the barrier the compiler transposes the product instead of its result, which makes
        # the weight the right operand again.
        kept = [size for axis, size in enumerate(self.shape) if axis not in self.contracted]
        return barrier(y_NM).T.reshape(*x.shape[: len(rows)], *kept)

    def gathered(self) -> "DecodeWeight":
        """This leaf, whose device holds all of it."""
        return self

    def dense(self, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """The weight as an array."""
        kept = [axis for axis in range(self.ndim) if axis not in self.contracted]
        order = (*kept, *self.contracted)
        w = self.transposed_NK.astype(dtype).reshape([self.sizes[axis] for axis in order])
        return jnp.transpose(w, [order.index(axis) for axis in range(self.ndim)])

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of a table [V, D] as [..., D], in its stored dtype."""
        # A table contracts its last axis, so its transposed form [N, K] is the table itself.
        place = None if jax.sharding.get_abstract_mesh().empty else PartitionSpec()
        return self.transposed_NK.at[ids].get(mode="clip", out_sharding=place)


def prepare(model: Model, params: Tree) -> Tree:
    """`params` in the layout for decoding: the same logits up to float rounding, in less time, for
    the memory of a second copy of the weights.

    `layers` becomes a tuple with a tree for each layer, whose arrays are `DecodeWeight`s; other
    leaves, such as `Quantized`, are only sliced. Returns `params` unchanged on any mesh of several
    devices, on other platforms than the CPU, and where they have this layout already.
    """
    mesh = jax.sharding.get_abstract_mesh()
    alone = mesh.empty or mesh.size == 1
    if not alone or platform() != "cpu" or isinstance(params["layers"], tuple):
        return params
    return _prepared(params, model=model)


@partial(jax.jit, static_argnames="model")
def _prepared(params: Tree, *, model: Model) -> Tree:
    dtype, owner = model.precision.compute_dtype, "embed" if model.config.tied else "head"

    def _one(index: int) -> Tree:
        return jax.tree.map_with_path(
            partial(_layer, dtype, index), params["layers"], is_leaf=_is_weight
        )

    table = params[owner]["table"]
    head = {
        **params[owner],
        "table": _transpose(table, dtype, (1,)) if isinstance(table, jax.Array) else table,
    }
    return {
        **params,
        owner: head,
        "layers": tuple(_one(index) for index in range(model.config.layers)),
    }


def _is_weight(node) -> bool:
    return not isinstance(node, dict)


def _layer(dtype: jnp.dtype, index: int, path: tuple, w):
    """Layer `index` of a stacked weight: a `DecodeWeight` where tokens are multiplied by it, the
    plain slice for everything else (norms, biases, experts, leaves, keys of an encoder's text)."""
    owner, name = path[0].key, path[-1].key
    of_layer = jax.tree.map(lambda array: array[index], w)
    leading = _CONTRACTED.get(name, 0)
    # These run once, on the encoder's states, and not for every token.
    of_memory = owner == "cross" and name in ("key", "value")
    # More than [L, D, F] in a feed-forward layer are experts, which a grouped product reads.
    if not isinstance(w, jax.Array) or not leading or of_memory or (owner == "mlp" and w.ndim > 3):
        return of_layer
    return _transpose(of_layer, dtype, tuple(range(leading)))


def _transpose(w: jax.Array, dtype: jnp.dtype, contracted: tuple[int, ...]) -> DecodeWeight:
    """`w` as a `DecodeWeight` in `dtype`, that of computation, so that no token casts it again."""
    order = (*(axis for axis in range(w.ndim) if axis not in contracted), *contracted)
    inner = math.prod(w.shape[axis] for axis in contracted)
    return DecodeWeight(
        jnp.transpose(w.astype(dtype), order).reshape(-1, inner), w.shape, contracted
    )
