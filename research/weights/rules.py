"""Transforms of a parameter tree: tree to tree, by ordered rules over paths.

    quantize(params, specs, [("layers/.*/(query|up)", "nf4"), (".*", None)])
    attach(params, adapters)     detach(attach(p, a)) == (p, a)
    merge(params)                the same tree with every adapter made part of its weight

QLoRA is attach(quantize(params), adapters): leaves nest, and the models never know which they hold. `specs` are the
model's, of which only `axes` and `inputs` are looked at.
"""

import math
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research import tree
from research.weights.lora import Lora, LoraAdapter
from research.weights.quantized import Quantized, nbits, quantize_array

STACKED = ("layers", "experts")  # axes of a spec that are no part of one matrix


def is_leaf(node: Any) -> bool:
    """Whether a node of a tree stands for a weight or an adapter, though it is no array."""
    return isinstance(node, (Quantized, Lora, LoraAdapter))


def quantize(
    params: tree.Tree, specs: tree.Tree, rules: Sequence[tuple[str, str | None]], group: int | None = None
) -> tree.Tree:
    """The tree with each matrix in the format that its first matching rule names, None as it is.

    ValueError for a rule that matches nothing, one that names what is no matrix, and groups that do not divide the inputs.
    """
    formats, by_path = _choices(rules, specs), tree.paths(specs)
    made = {}
    for path, w in tree.paths(params, is_leaf).items():
        made[path] = w if formats[path] is None else _quantize(path, w, by_path[path], formats[path], group)
    return tree.unflatten(made)


def new_lora(
    key: jax.Array, specs: tree.Tree, rules: Sequence[tuple[str, int]], alpha: float, *, rank_stable: bool = False
) -> tree.Tree:
    """Fresh adapters for the matrices whose first matching rule names a rank above 0: identity until they are trained.

    `a` is uniform within 1 / sqrt(inputs), `b` zero, as peft starts them; the scale is alpha / rank, or alpha / sqrt(rank)
    if `rank_stable` (arXiv:2312.03732). ValueError for a rank above what the matrix has.
    """
    ranks, made = _choices(rules, specs), {}
    for path, spec in tree.paths(specs).items():
        rank = ranks[path] or 0
        if not rank:
            continue
        stack, inner, outer = _parts(path, spec)
        if rank > min(math.prod(inner), math.prod(outer)):
            raise ValueError(f"rank {rank} is over the {min(math.prod(inner), math.prod(outer))} of {path}; set a lower one")
        bound = 1 / math.sqrt(math.prod(inner))
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))
        a = jax.random.uniform(own, (*stack, *inner, rank), jnp.float32, -bound, bound)
        scale = alpha / (math.sqrt(rank) if rank_stable else rank)
        b, scales = jnp.zeros((*stack, rank, *outer)), jnp.full(stack, scale, jnp.float32)
        made[path] = LoraAdapter(a, b, scales, table=spec.inputs < 0)
    return tree.unflatten(made)


def attach(params: tree.Tree, adapters: tree.Tree) -> tree.Tree:
    """The parameters with each adapter on its weight. ValueError for an adapter whose weight is not there."""
    made = tree.paths(params, is_leaf)
    for path, adapter in tree.paths(adapters, is_leaf).items():
        if path not in made:
            raise ValueError(f"the adapter has {path}, which the parameters have not; it was made for another model")
        made[path] = Lora(made[path], adapter)
    return tree.unflatten(made)


def detach(params: tree.Tree) -> tuple[tree.Tree, tree.Tree]:
    """The parameters without their outermost adapters, and those."""
    leaves = tree.paths(params, is_leaf)
    adapters = {path: leaf.adapter for path, leaf in leaves.items() if isinstance(leaf, Lora)}
    bases = {path: leaf.base if isinstance(leaf, Lora) else leaf for path, leaf in leaves.items()}
    return tree.unflatten(bases), tree.unflatten(adapters)


def merge(params: tree.Tree, dtype: jnp.dtype = jnp.float32) -> tree.Tree:
    """The parameters with every adapter made part of its weight, which is dense then; others as they are."""
    return jax.tree.map(lambda leaf: leaf.dense(dtype) if isinstance(leaf, Lora) else leaf, params, is_leaf=is_leaf)


def count_bits(params: tree.Tree) -> int:
    """Bits that the storage of a tree takes."""
    return sum(nbits(leaf) for leaf in jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, Quantized)))


def _choices(rules: Sequence[tuple[str, Any]], specs: tree.Tree) -> dict[str, Any]:
    return tree.paths(tree.choose(rules, specs), is_leaf=lambda node: node is None)


def _parts(path: str, spec: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Sizes of the stacked axes, the inputs and the outputs of a matrix."""
    stacked = sum(axis in STACKED for axis in spec.axes)
    stack, shape = spec.shape[:stacked], spec.shape[stacked:]
    if len(shape) < 2:
        raise ValueError(f"{path} is no matrix; leave it out of the rules")
    return (stack, shape[-1:], shape[:-1]) if spec.inputs < 0 else (stack, shape[: spec.inputs], shape[spec.inputs :])


def _quantize(path: str, w: Any, spec: Any, format: str, group: int | None) -> Quantized:
    if not isinstance(w, jax.Array):
        raise ValueError(f"{path} is a {type(w).__name__} already; quantize the plain parameters")
    stack, _, _ = _parts(path, spec)
    try:
        return quantize_array(w, format, inputs=spec.inputs, stacked=len(stack), group=group)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
