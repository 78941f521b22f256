"""Weights laid out anew for decoding on a CPU, once before the first token.

A token's products read every weight once for a handful of rows, so they are as fast as memory if the weights stand in the
order in which they are read. Three things about the trained layout are in the way on XLA's CPU backend: a layer sliced
out of the stack is copied for every token, the columns of [K, N] that one kernel works on lie N apart, and an embedding
table [V, D] is turned for the head. Panels, [N / 64, K, 64], have none of that: 2 to 8 rows take a half of the time.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.models.model import Model
from research.ops.backend import platform
from research.tree import Tree

WIDTH = 64  # columns of a panel: of 32, 64 and 192 the fastest for 2 to 64 rows
ROWS = 256  # the most that are multiplied panel by panel; the copy of them that each panel gets outgrows the weights

# Leading axes that a product contracts, by the weight's name; what is not named stays an array.
_CONTRACTED = {"query": 1, "key": 1, "value": 1, "out": 2, "gate": 1, "up": 1, "down": 1}


@partial(jax.tree_util.register_dataclass, data_fields=["panels_GKW"], meta_fields=["shape", "contracted"])
@dataclass(frozen=True)
class Panels:
    """A weight in place of an array, see `research.ops.einsum`: a matrix [K, N] as [N / 64, K, 64], zeros after its end.

    `shape` is the weight's own, `contracted` its axes that make K, leading ones or, for a table, the last alone.
    """

    panels_GKW: jax.Array
    shape: tuple[int, ...]
    contracted: tuple[int, ...]

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """The product over K, in the dtype of `x`, whose last axes K must be; the result's are N."""
        (of_x, of_w), of_y = eqn.split("->")[0].split(","), eqn.split("->")[1]
        inner = "".join(of_w[axis] for axis in self.contracted)
        outer = "".join(letter for letter in of_w if letter not in inner)
        rows = of_x.removesuffix(inner)
        if (of_x, of_y) != (rows + inner, rows + outer):
            raise ValueError(f"einsum {eqn!r}: panels contract {inner!r}, which must end {of_x!r}, and leave {outer!r}")
        y_MN = _multiply(x.reshape(-1, self.panels_GKW.shape[1]), self.panels_GKW.astype(x.dtype))
        kept = [size for axis, size in enumerate(self.shape) if axis not in self.contracted]
        return y_MN[:, : math.prod(kept)].reshape(*x.shape[: len(rows)], *kept)

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of a table [V, D], a panel's columns, as [..., D]."""
        at = self.panels_GKW.at[ids // WIDTH, :, ids % WIDTH]
        if jax.sharding.get_abstract_mesh().empty:
            return at.get(mode="clip")
        return at.get(mode="clip", out_sharding=PartitionSpec())


def _multiply(x_MK: jax.Array, w_GKW: jax.Array) -> jax.Array:
    """[M, G * W]."""
    M, K = x_MK.shape
    if M > ROWS:
        return jnp.einsum("MK,GKW->MGW", x_MK, w_GKW).reshape(M, -1)
    x_GMK = jnp.broadcast_to(x_MK[None], (w_GKW.shape[0], M, K))
    y_GMW = jax.lax.dot_general(x_GMK, w_GKW, (((2,), (1,)), ((0,), (0,))))
    return jnp.moveaxis(y_GMW, 0, 1).reshape(M, -1)


def prepare(model: Model, params: Tree) -> Tree:
    """Parameters that decode faster to the same logits but for float order, at the price of a copy of the weights.

    The layers come as a tuple of trees, and weights that are arrays as panels; what contracts itself stays as it is. For
    a single CPU device; elsewhere, and where `params` are prepared already, they are returned.
    """
    mesh = jax.sharding.get_abstract_mesh()
    alone = mesh.empty or mesh.size == 1
    if not alone or platform() != "cpu" or isinstance(params["layers"], tuple):
        return params
    return _prepared(params, model=model)


@partial(jax.jit, static_argnames="model")
def _prepared(params: Tree, *, model: Model) -> Tree:
    dtype, owner = model.precision.compute_dtype, "embed" if model.config.tied else "head"

    def one(index: int) -> Tree:
        return jax.tree.map_with_path(partial(_layer, dtype, index), params["layers"], is_leaf=_is_weight)

    table = params[owner]["table"]
    head = {**params[owner], "table": _panels(table, dtype, (1,)) if isinstance(table, jax.Array) else table}
    return {**params, owner: head, "layers": tuple(one(index) for index in range(model.config.layers))}


def _is_weight(node) -> bool:
    return not isinstance(node, dict)


def _layer(dtype: jnp.dtype, index: int, path: tuple, w):
    """One layer of a stacked weight, as panels where the model multiplies tokens with it and it is no expert's."""
    owner, name = path[0].key, path[-1].key
    own = jax.tree.map(lambda part: part[index], w)
    leading = _CONTRACTED.get(name, 0)
    of_memory = owner == "cross" and name in ("key", "value")  # read when the encoder has run, and then no more
    if not isinstance(w, jax.Array) or not leading or of_memory or (owner == "mlp" and w.ndim > 3):
        return own
    return _panels(own, dtype, tuple(range(leading)))


def _panels(w: jax.Array, dtype: jnp.dtype, contracted: tuple[int, ...]) -> Panels:
    order = (*contracted, *(axis for axis in range(w.ndim) if axis not in contracted))
    rows = math.prod(w.shape[axis] for axis in contracted)
    w_KN = jnp.transpose(w.astype(dtype), order).reshape(rows, -1)
    if w_KN.shape[1] % WIDTH:
        w_KN = jnp.pad(w_KN, ((0, 0), (0, -w_KN.shape[1] % WIDTH)))
    return Panels(jnp.moveaxis(w_KN.reshape(rows, -1, WIDTH), 1, 0), w.shape, contracted)
