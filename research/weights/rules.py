"""Transforms of a parameter tree: tree to tree, by ordered rules over paths.

    quantize(params, specs, [("layers/.*/(query|up)", "nf4"), (".*", None)])
    attach(params, adapters)     detach(attach(p, a)) == (p, a)
    merge(params)                the same tree with every adapter made part of its weight

QLoRA is attach(quantize(params), adapters): leaves nest, and the models never know which they hold.
`specs` are the model's; of them only `shape`, `axes` and `inputs` are read.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research import tree
from research.weights.ia3 import Ia3, Ia3Adapter
from research.weights.lora import Lora, LoraAdapter
from research.weights.matrices import split_axes
from research.weights.quantized import quantize_array, quantize_spec

Rules = Sequence[tuple[str, str | None]]

# Adapters, and the leaf that each makes of a weight.
ADAPTED = {LoraAdapter: Lora, Ia3Adapter: Ia3}


def is_leaf(node: Any) -> bool:
    """True for leaves (see `research.weights.leaf.Leaf`) and for adapters; for maps over trees."""
    return type(node) in ADAPTED or hasattr(node, "einsum")


def quantize(
    params: tree.Tree, specs: tree.Tree, rules: Rules, group: int | None = None
) -> tree.Tree:
    """The tree with each matrix in the format that its first matching rule names; None leaves it as
    it is. `group` is as in `research.weights.quantized.quantize_array`.

    ValueError for a rule that matches nothing, one that names what is no matrix, groups that do not
    divide the inputs, and a weight that is no array.
    """
    by_path, formats = tree.paths(specs), _choices(rules, specs)

    def one(path: str, w: Any, format: str) -> Any:
        if not isinstance(w, jax.Array):
            raise ValueError(
                f"{path} is a {type(w).__name__} already; quantize the plain parameters"
            )
        inputs, stacked = by_path[path].inputs, len(split_axes(path, by_path[path])[0])
        return quantize_array(w, format, inputs=inputs, stacked=stacked, group=group)

    return _where_chosen(formats, tree.paths(params, is_leaf), one)


def quantize_specs(specs: tree.Tree, rules: Rules, group: int | None = None) -> tree.Tree:
    """What `quantize` makes of parameters with these specs, as specs. ValueErrors as there."""
    formats = _choices(rules, specs)

    def one(path: str, w: Any, format: str) -> Any:
        return quantize_spec(w, format, stacked=len(split_axes(path, w)[0]), group=group)

    return _where_chosen(formats, tree.paths(specs), one)


def attach(params: tree.Tree, adapters: tree.Tree, key: jax.Array | None = None) -> tree.Tree:
    """The parameters with each adapter on its weight; arrays among the adapters are added as
    parameters of their own.

    `key` is the randomness of the adapters' dropout, None for no dropout. ValueError for an adapter
    whose weight is not there, and for an array at a path that the parameters have too.
    """
    leaves = tree.paths(params, is_leaf)
    for path, adapter in tree.paths(adapters, is_leaf).items():
        if type(adapter) not in ADAPTED:
            if path in leaves:
                raise ValueError(f"both trees have {path}; one of the two would be lost")
            leaves[path] = adapter
        elif path not in leaves:
            raise ValueError(
                f"the adapter has {path}, which the parameters have not; it was made for another "
                "model"
            )
        elif isinstance(adapter, LoraAdapter):
            leaves[path] = Lora(leaves[path], adapter, _dropout_key(key, path, adapter))
        else:
            leaves[path] = ADAPTED[type(adapter)](leaves[path], adapter)
    return tree.unflatten(leaves)


def detach(params: tree.Tree) -> tuple[tree.Tree, tree.Tree]:
    """(parameters without their outermost adapters, those adapters)."""
    leaves = tree.paths(params, is_leaf)
    adapters = {path: leaf.adapter for path, leaf in leaves.items() if _adapted(leaf)}
    bases = {path: leaf.base if _adapted(leaf) else leaf for path, leaf in leaves.items()}
    return tree.unflatten(bases), tree.unflatten(adapters)


def merge(params: tree.Tree, dtype: jnp.dtype = jnp.float32) -> tree.Tree:
    """The parameters with every adapter made part of its weight, which becomes an array; other
    weights stay as they are."""
    return jax.tree.map(
        lambda leaf: leaf.dense(dtype) if _adapted(leaf) else leaf, params, is_leaf=is_leaf
    )


def drops(adapters: tree.Tree) -> bool:
    """Whether any of the adapters has dropout, for which `attach` needs a key in training."""
    leaves = jax.tree.leaves(adapters, is_leaf=is_leaf)
    return any(isinstance(leaf, LoraAdapter) and leaf.dropout > 0 for leaf in leaves)


def _adapted(leaf: Any) -> bool:
    return type(leaf) in ADAPTED.values()


def _dropout_key(key: jax.Array | None, path: str, adapter: LoraAdapter) -> jax.Array | None:
    """Key data of an adapter, one a layer where it is stacked; None where nothing is dropped."""
    if key is None or not adapter.dropout:
        return None
    key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    return jax.random.key_data(jax.random.split(key, adapter.scale.shape))


def _choices(rules: Rules, specs: tree.Tree) -> dict[str, str | None]:
    """The format of each path."""
    return tree.paths(tree.choose(rules, specs), is_leaf=lambda node: node is None)


def _where_chosen(
    formats: dict[str, str | None], leaves: dict[str, Any], one: Callable[[str, Any, str], Any]
) -> tree.Tree:
    """The tree with `one(path, leaf, format)` where a format is chosen; its ValueErrors name the
    path."""
    changed = dict(leaves)
    for path, leaf in leaves.items():
        format = formats[path]
        if format is None:
            continue
        try:
            changed[path] = one(path, leaf, format)
        except ValueError as error:
            named = str(error).startswith(path)
            raise error if named else ValueError(f"{path}: {error}") from None
    return tree.unflatten(changed)
