"""Transforms of a parameter tree: tree to tree, by ordered rules over paths.

    quantize(params, specs, [("layers/.*/(query|up)", "nf4"), (".*", None)])
    attach(params, adapters)     detach(attach(p, a)) == (p, a)
    merge(params)                the same tree with every adapter made part of its weight

QLoRA is attach(quantize(params), adapters): leaves nest, and the models never know which they hold.
`specs` are the model's, of which only shapes, `axes` and `inputs` are looked at.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research import tree
from research.weights.ia3 import Ia3, Ia3Adapter
from research.weights.lora import Lora, LoraAdapter
from research.weights.matrices import parts
from research.weights.quantized import quantize_array, quantize_spec

Rules = Sequence[tuple[str, str | None]]


# Adapters, and the leaf that each makes of a weight.
ADAPTED = {LoraAdapter: Lora, Ia3Adapter: Ia3}


def is_leaf(node: Any) -> bool:
    """Whether a node of a tree stands for a weight, in that it contracts itself, or is an adapter,
    though it is no array."""
    return type(node) in ADAPTED or hasattr(node, "einsum")


def quantize(
    params: tree.Tree, specs: tree.Tree, rules: Rules, group: int | None = None
) -> tree.Tree:
    """The tree with each matrix in the format that its first matching rule names, None as it is.

    ValueError for a rule that matches nothing, one that names what is no matrix, and groups that do
    not divide the inputs.
    """
    formats, by_path = _choices(rules, specs), tree.paths(specs)
    made = {}
    for path, w in tree.paths(params, is_leaf).items():
        if formats[path] is not None and not isinstance(w, jax.Array):
            raise ValueError(
                f"{path} is a {type(w).__name__} already; quantize the plain parameters"
            )
        spec, stacked = (
            by_path[path],
            0 if formats[path] is None else len(parts(path, by_path[path])[0]),
        )
        made[path] = _at(
            path, quantize_array, w, formats[path], stacked=stacked, group=group, inputs=spec.inputs
        )
    return tree.unflatten(made)


def quantize_specs(specs: tree.Tree, rules: Rules, group: int | None = None) -> tree.Tree:
    """What `quantize` makes of parameters with these specs, as specs. ValueErrors as there."""
    formats, made = _choices(rules, specs), {}
    for path, w in tree.paths(specs).items():
        stacked = 0 if formats[path] is None else len(parts(path, w)[0])
        made[path] = _at(path, quantize_spec, w, formats[path], stacked=stacked, group=group)
    return tree.unflatten(made)


def attach(params: tree.Tree, adapters: tree.Tree, key: jax.Array | None = None) -> tree.Tree:
    """The parameters with each adapter on its weight; arrays among the adapters are parameters
    more.

    `key` is the randomness of the adapters' dropout, None for none. ValueError for an adapter whose
    weight is not there, and for an array at a path that the parameters have too.
    """
    made = tree.paths(params, is_leaf)
    for path, adapter in tree.paths(adapters, is_leaf).items():
        if type(adapter) not in ADAPTED:
            if path in made:
                raise ValueError(f"both trees have {path}; one of the two would be lost")
            made[path] = adapter
        elif path not in made:
            raise ValueError(
                f"the adapter has {path}, which the parameters have not; it was made for another model"
            )
        elif isinstance(adapter, LoraAdapter):
            made[path] = Lora(made[path], adapter, _own_key(key, path, adapter))
        else:
            made[path] = ADAPTED[type(adapter)](made[path], adapter)
    return tree.unflatten(made)


def detach(params: tree.Tree) -> tuple[tree.Tree, tree.Tree]:
    """The parameters without their outermost adapters, and those."""
    leaves = tree.paths(params, is_leaf)
    adapters = {path: leaf.adapter for path, leaf in leaves.items() if _adapted(leaf)}
    bases = {path: leaf.base if _adapted(leaf) else leaf for path, leaf in leaves.items()}
    return tree.unflatten(bases), tree.unflatten(adapters)


def merge(params: tree.Tree, dtype: jnp.dtype = jnp.float32) -> tree.Tree:
    """The parameters with every adapter made part of its weight, which is dense then; others as
    they are."""
    return jax.tree.map(
        lambda leaf: leaf.dense(dtype) if _adapted(leaf) else leaf, params, is_leaf=is_leaf
    )


def drops(adapters: tree.Tree) -> bool:
    """Whether any of the adapters has dropout, for which `attach` wants a key in training."""
    leaves = jax.tree.leaves(adapters, is_leaf=is_leaf)
    return any(isinstance(leaf, LoraAdapter) and leaf.dropout > 0 for leaf in leaves)


def _adapted(leaf: Any) -> bool:
    return type(leaf) in ADAPTED.values()


def _own_key(key: jax.Array | None, path: str, adapter: LoraAdapter) -> jax.Array | None:
    """Key data of an adapter, one a layer where it is stacked; None where nothing is dropped."""
    if key is None or not adapter.dropout:
        return None
    own = jax.random.fold_in(key, zlib.crc32(path.encode()))
    return jax.random.key_data(jax.random.split(own, adapter.scale.shape))


def _choices(rules: Rules, specs: tree.Tree) -> dict[str, Any]:
    return tree.paths(tree.choose(rules, specs), is_leaf=lambda node: node is None)


def _at(path: str, transform: Any, w: Any, format: str | None, **how: Any) -> Any:
    """`transform` of a weight, `w` itself without a format; errors name the path."""
    if format is None:
        return w
    try:
        return transform(w, format, **how)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
