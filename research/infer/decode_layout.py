"""The layout of weights for decoding: transposed, and a tuple of layers, not a stack.

Each token's products read every weight once for a few rows, so memory bandwidth is their limit.
In the layout of training both CPU and GPU stay far below it: a layer sliced out of the stack is
copied for every token, and a column of a [K, N] matrix, which a product's kernel reads, has its
values N apart. Transposed to [N, K] and as the left operand, weights are read in the order of
memory by all threads. On a CPU 8 rows then take half to two thirds of the time. On an H100 one row
of LLaMA 3 8B in bfloat16 writes 158 tokens/s instead of 64 (with layers apart alone 109), 8 rows
1,245 instead of 481.

Two functions make it: `prepare` copies, for a caller that goes on using its parameters, and `move`
takes the parameters away, for one whose device has no room for both.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from research.devices.backend import barrier, platform
from research.models.model import Model
from research.models.stack import layer_count
from research.ops.kernels.equation import parse
from research.tree import Tree
from research.weights.leaf import Leaf
from research.weights.quantized import Quantized

# Number of leading axes that a product contracts, by the weight's name. Weights that are not named
# here stay arrays.
_CONTRACTED = {"query": 1, "key": 1, "value": 1, "out": 2, "gate": 1, "up": 1, "down": 1}
_CONTRACTED |= {"query_down": 1, "kv_down": 1, "rotary_key": 1}


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

    Returns `params` unchanged on any mesh of several devices, on accelerators, whose memory has no
    room for a copy (see `move`), and where they have this layout already.
    """
    if platform() != "cpu" or not is_faster() or isinstance(params["layers"], tuple):
        return params
    return _prepared(params, model=model)


def move(model: Model, params: Tree) -> Tree:
    """`params` in the layout for decoding, in the memory that they have: a stacked weight is
    fetched to the host, freed, and put back a layer at a time. At no time does the device hold more
    than the weights and one layer's matrix, transposed and not. `params` cannot be used afterwards.

    For the owner of the parameters, once and before the first text:

        params = move(model, params)
        stream(model, params, tokenizer, prompts)

    Returns `params` unchanged on a CPU, for which `prepare` does as much, and where the layout is
    not faster. A prompt becomes the prefix that it amounts to (`Model.prompted`).
    """
    if platform() != "gpu" or not is_faster() or isinstance(params["layers"], tuple):
        return params
    if "prompt" in params:
        params = jax.jit(Model.prompted, static_argnums=0)(model, params)
    dense = _of_dense(params, lambda stacked: _moved(model, stacked))
    layers = _moved(model, params["layers"])
    head = _head(model, params)
    for old, new in zip(
        jax.tree.leaves({name: params[name] for name in head}), jax.tree.leaves(head)
    ):
        if new.dtype != old.dtype:  # only then is it another array
            old.delete()
    return {**params, **head, **dense, "layers": layers}


def _of_dense(params: Tree, laid_out: Callable[[Tree], tuple[Tree, ...]]) -> Tree:
    """First layers without experts, as a tuple; {} for a model without them."""
    return {"dense": {"layers": laid_out(params["dense"]["layers"])}} if "dense" in params else {}


def _moved(model: Model, p_layers: Tree) -> tuple[Tree, ...]:
    """Stacked layers as a tuple in the layout, see `move`."""
    dtype = model.precision.compute_dtype
    stacked, structure = jax.tree.flatten_with_path(p_layers, is_leaf=_is_weight)
    layers: list[list] = [[] for _ in range(layer_count(p_layers))]
    for path, weight in stacked:
        arrays, leaf = jax.tree.flatten(weight)
        # A donated copy would not do: no output is as large as the stack, so none takes its buffer.
        host = [_fetch(array) for array in arrays]
        for index, layer in enumerate(layers):
            arrays = [jax.device_put(array[index], place) for array, place in host]
            w_layer = jax.tree.unflatten(leaf, arrays)
            axes = _contracted_axes(path, w_layer)
            layer.append(_transposed(w_layer, dtype, axes) if axes else _with_scales(w_layer))
        # So that the next weight is not copied back before the memory of this one is free.
        jax.block_until_ready([layer[-1] for layer in layers])
    return tuple(jax.tree.unflatten(structure, layer) for layer in layers)


def _with_scales(weight):
    """A quantized weight with plain scales where a kernel of decoding reads those: else each token
    would decode double quantization again. They take 4 bytes for a group of codes."""
    from research.ops.kernels import quantized_matvec_gpu  # Pallas takes a second to import

    if not quantized_matvec_gpu.FASTEST or not isinstance(weight, Quantized):
        return weight
    return _gathered(weight)


def lay_out(model: Model, params: Tree) -> Tree:
    """The layout itself, as a function that can be traced: `layers` becomes a tuple with a tree for
    each layer, whose arrays are `DecodeWeight`s; other leaves, such as `Quantized`, are only
    sliced."""
    dtype = model.precision.compute_dtype

    def _arranged(index: int, path: tuple, w):
        w_layer = jax.tree.map(lambda array: array[index], w)
        axes = _contracted_axes(path, w_layer)
        return _transpose(w_layer, dtype, axes) if axes else w_layer

    def _all(p_layers: Tree) -> tuple[Tree, ...]:
        return tuple(
            jax.tree.map_with_path(partial(_arranged, index), p_layers, is_leaf=_is_weight)
            for index in range(layer_count(p_layers))
        )

    dense = _of_dense(params, _all)
    return {**params, **_head(model, params), **dense, "layers": _all(params["layers"])}


def is_faster() -> bool:
    """Whether this layout was measured to be the faster one: on one device, CPU or GPU."""
    mesh = jax.sharding.get_abstract_mesh()
    return (mesh.empty or mesh.size == 1) and platform() in ("cpu", "gpu")


_prepared = jax.jit(lambda params, *, model: lay_out(model, params), static_argnames="model")


def _fetch(array: jax.Array) -> tuple[np.ndarray, jax.sharding.Sharding]:
    """A stacked array on the host, which leaves the device, and where each of its layers goes."""
    place = array.sharding
    if isinstance(place, NamedSharding):
        place = NamedSharding(place.mesh, PartitionSpec(*place.spec[1:]))
    # A copy: on a CPU, where tests run this, the host's array would be the device's own memory.
    host = np.array(array)
    array.delete()
    return host, place


def _head(model: Model, params: Tree) -> Tree:
    """The part of `params` that has the table of the logits, with that table as a `DecodeWeight`.
    It is [V, D], so the layout changes its type at most."""
    owner = "embed" if model.config.tied else "head"
    table = params[owner]["table"]
    if isinstance(table, jax.Array):
        table = _transpose(table, model.precision.compute_dtype, (1,))
    return {owner: {**params[owner], "table": table}}


def _is_weight(node) -> bool:
    return not isinstance(node, dict)


def _contracted_axes(path: tuple, w_layer) -> tuple[int, ...]:
    """The axes of a layer's weight that products sum over, if tokens are multiplied by it; () for
    everything else (norms, biases, experts, leaves, keys of an encoder's text)."""
    owner, name = path[0].key, path[-1].key
    # These run once, on the encoder's states, and not for every token.
    of_memory = owner == "cross" and name in ("key", "value")
    # More than [D, F] in a feed-forward layer are experts, which a grouped product reads.
    if not isinstance(w_layer, jax.Array) or of_memory or (owner == "mlp" and w_layer.ndim > 2):
        return ()
    return tuple(range(_CONTRACTED.get(name, 0)))


def _transpose(w: jax.Array, dtype: jnp.dtype, contracted: tuple[int, ...]) -> DecodeWeight:
    """`w` as a `DecodeWeight` in `dtype`, that of computation, so that no token casts it again."""
    order = (*(axis for axis in range(w.ndim) if axis not in contracted), *contracted)
    inner = math.prod(w.shape[axis] for axis in contracted)
    matrix = (
        w.astype(dtype) if order == tuple(range(w.ndim)) else jnp.transpose(w.astype(dtype), order)
    )
    return DecodeWeight(matrix.reshape(-1, inner), w.shape, contracted)


_transposed = jax.jit(_transpose, static_argnums=(1, 2))
_gathered = jax.jit(Quantized.gathered)
