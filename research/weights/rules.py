"""Transforms from parameter tree to parameter tree, chosen by ordered (path regex, choice) rules.

    quantize(params, specs, [("layers/.*/(query|up)", "nf4"), (".*", None)])
    attach(params, adapters)     detach(attach(p, a)) == (p, a)
    merge(params)                every adapter is added to its weight

QLoRA is attach(quantize(params), adapters): leaves nest, and a model never knows which it holds.
`specs` are the model's; only their `shape`, `axes` and `inputs` are read.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from research import tree
from research.weights.ia3 import Ia3, Ia3Adapter
from research.weights.lora import Lora, LoraAdapter
from research.weights.matrices import split_axes
from research.weights.quantized import quantize_array, quantize_spec
from research.weights.sparse import Sparse

Rules = Sequence[tuple[str, str | None]]

# The frozen tree of a run that lies on no base: another checkpoint, which a student learns from.
TEACHER = "teacher"
# `attach`, `detach` and `merge` tell adapters from plain arrays by this table.
ADAPTED = {LoraAdapter: Lora, Ia3Adapter: Ia3}


def is_leaf(node: Any) -> bool:
    """True for leaves (`research.weights.leaf.Leaf`) and for adapters; use as `is_leaf` in maps
    over trees."""
    return type(node) in ADAPTED or hasattr(node, "einsum")


def quantize(
    params: tree.Tree, specs: tree.Tree, rules: Rules, group: int | None = None
) -> tree.Tree:
    """The tree with each matrix in the format that its first matching rule names; None leaves a
    weight unchanged. `group` is that of `research.weights.quantized.quantize_array`.

    ValueError for a rule that matches nothing or chooses a parameter that is not a matrix, for
    groups that do not divide the inputs, and for a weight that is not an array.
    """
    by_path, formats = tree.paths(specs), _choices(rules, specs)

    def _quantize(path: str, w: Any, format: str) -> Any:
        if not isinstance(w, jax.Array):
            raise ValueError(
                f"{path} is a {type(w).__name__} already; quantize the plain parameters"
            )
        inputs, stacked = by_path[path].inputs, len(split_axes(path, by_path[path])[0])
        return quantize_array(w, format, inputs=inputs, stacked=stacked, group=group)

    return _where_chosen(formats, tree.paths(params, is_leaf), _quantize)


def quantize_specs(specs: tree.Tree, rules: Rules, group: int | None = None) -> tree.Tree:
    """The specs of the tree that `quantize` returns for parameters with these specs. ValueErrors as
    in `quantize`."""
    formats = _choices(rules, specs)

    def _quantize(path: str, w: Any, format: str) -> Any:
        return quantize_spec(w, format, stacked=len(split_axes(path, w)[0]), group=group)

    return _where_chosen(formats, tree.paths(specs), _quantize)


def attach(params: tree.Tree, adapters: tree.Tree, key: jax.Array | None = None) -> tree.Tree:
    """The parameters with each adapter on its weight. Arrays among the adapters (prompts,
    classifier heads, ...) are added as parameters of their own.

    `key` seeds the adapters' dropout, None turns it off. ValueError for an adapter whose weight is
    missing, and for an array at a path that the parameters have too.
    """
    leaves = tree.paths(params, is_leaf)
    for path, adapter in tree.paths(adapters, is_leaf).items():
        # A parameter that the model reads under its own path, such as prompt/table.
        if type(adapter) not in ADAPTED:
            if path in leaves:
                raise ValueError(f"both trees have {path}; one of the two would be lost")
            leaves[path] = adapter
        elif path not in leaves:
            raise ValueError(
                f"the adapter has {path}, which the parameters have not; it was made for another "
                "model"
            )
        else:
            leaves[path] = _attached(path, leaves[path], adapter, key)
    return tree.unflatten(leaves)


def _attached(path: str, w: Any, adapter: Any, key: jax.Array | None) -> Any:
    """The weight with an adapter. Below a `Sparse` leaf, whose mask is of the adapted weight."""
    if isinstance(w, Sparse):
        if key is not None and isinstance(adapter, LoraAdapter) and adapter.dropout:
            raise ValueError(
                f"{path} is sparse, and its masked update has no input to drop; set "
                "config.lora.dropout=0"
            )
        return replace(w, base=_attached(path, w.base, adapter, None))
    if isinstance(adapter, LoraAdapter):
        return Lora(w, adapter, _dropout_key(key, path, adapter))
    return ADAPTED[type(adapter)](w, adapter)


def detach(params: tree.Tree) -> tuple[tree.Tree, tree.Tree]:
    """(parameters without their outermost adapters, these adapters). Arrays that `attach` added
    stay among the parameters."""
    leaves = tree.paths(params, is_leaf)
    adapters = {path: _dense_part(leaf).adapter for path, leaf in leaves.items() if _adapted(leaf)}
    bases = {path: _base(leaf) if _adapted(leaf) else leaf for path, leaf in leaves.items()}
    return tree.unflatten(bases), tree.unflatten(adapters)


def merge(params: tree.Tree, dtype: jnp.dtype = jnp.float32) -> tree.Tree:
    """The parameters with every adapter added to its weight, which becomes an array of type
    `dtype`; weights without an adapter are unchanged. A sparse weight stays one, with its zeros."""

    def _merged(leaf: Any) -> Any:
        if not _adapted(leaf):
            return leaf
        w = leaf.dense(dtype)
        return replace(leaf, base=w) if isinstance(leaf, Sparse) else w

    return jax.tree.map(_merged, params, is_leaf=is_leaf)


def redraw_dropout(params: tree.Tree, number: jax.Array) -> tree.Tree:
    """The parameters with other dropout masks in their unstacked adapters, one set for each
    `number`: for a product that is computed piece by piece, whose pieces would share a mask."""

    def _redraw(leaf: Any) -> Any:
        if not isinstance(leaf, Lora) or leaf.key is None or leaf.adapter.scale.ndim:
            return leaf
        key = jax.random.fold_in(jax.random.wrap_key_data(leaf.key), number)
        return replace(leaf, key=jax.random.key_data(key))

    return jax.tree.map(_redraw, params, is_leaf=is_leaf)


def drops(adapters: tree.Tree) -> bool:
    """True if any adapter has dropout, so that `attach` needs a key in training."""
    leaves = jax.tree.leaves(adapters, is_leaf=is_leaf)
    return any(isinstance(leaf, LoraAdapter) and leaf.dropout > 0 for leaf in leaves)


def _adapted(leaf: Any) -> bool:
    return type(_dense_part(leaf)) in ADAPTED.values()


def _dense_part(leaf: Any) -> Any:
    """What lies below the mask of a `Sparse` leaf; any other leaf itself."""
    return leaf.base if isinstance(leaf, Sparse) else leaf


def _base(leaf: Any) -> Any:
    """An adapted leaf without its outermost adapter."""
    return replace(leaf, base=leaf.base.base) if isinstance(leaf, Sparse) else leaf.base


def _dropout_key(key: jax.Array | None, path: str, adapter: LoraAdapter) -> jax.Array | None:
    """Key data of an adapter, one a layer where it is stacked; None where nothing is dropped."""
    if key is None or not adapter.dropout:
        return None
    # The path makes masks of different weights independent; crc32 and not `hash`, which differs
    # between processes.
    key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    # Key data and not a key: a scan over layers slices plain arrays.
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
            # Errors that name the path already are not given it twice.
            named = str(error).startswith(path)
            raise error if named else ValueError(f"{path}: {error}") from None
    return tree.unflatten(changed)
