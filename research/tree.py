"""Parameter trees as paths: names, ordered rules, counts.

A tree is nested dicts whose leaves are arrays, abstract arrays, specs or weight leaves. A path is
the keys joined by "/", such as `layers/attention/query`. Every choice by parameter (decay, learning
rate, freezing, quantization) is an ordered list of (regex, choice) rules over these paths; a rule
that matches nothing is an error.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

Tree = Any


def path_name(path: Sequence[Any]) -> str:
    """The name "a/b/c" of a jax key path."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def paths(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """The leaves by path, in tree order: {"embed/table": ..., "layers/mlp/up": ...}."""
    leaves, _ = jax.tree.flatten_with_path(tree, is_leaf=is_leaf)
    return {path_name(path): leaf for path, leaf in leaves}


def unflatten(flat: dict[str, Any]) -> Tree:
    """The nested dict with these leaves: `unflatten(paths(tree)) == tree` for nested dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def choose(
    rules: Sequence[tuple[str, Any]], tree: Tree, is_leaf: Callable[[Any], bool] | None = None
) -> Tree:
    """A tree with, for each leaf, the choice of the first rule whose regex matches its whole path.

        choose([(".*/bias", 0.0), (".*", 1.0)], params)

    ValueError for a rule that matches no path, with the nearest paths, and for a path that no rule
    covers. A rule may be shadowed by earlier ones as long as it matches a path.
    """
    names = list(paths(tree, is_leaf))
    for pattern, _ in rules:
        if not any(re.fullmatch(pattern, name) for name in names):
            # cutoff=0: the best three whatever their distance, since a regex looks little like a
            # path.
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
            raise ValueError(
                f"rule {pattern!r} matches no parameter; the nearest are {', '.join(near)}"
            )

    def _pick(name: str) -> Any:
        for pattern, choice in rules:
            if re.fullmatch(pattern, name):
                return choice
        raise ValueError(f"no rule covers {name}; add one, such as ('.*', ...), at the end")

    return jax.tree.map_with_path(lambda path, _: _pick(path_name(path)), tree, is_leaf=is_leaf)


def match(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a regex matches as a whole path or as the last part of one: "query" matches
    "layers/attention/query". ValueError, with the nearest paths, if it matches none."""
    names = list(names)
    matched = [
        name
        for name in names
        if re.fullmatch(pattern, name) or re.fullmatch(pattern, name.rsplit("/", 1)[-1])
    ]
    if not matched:
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
        raise ValueError(f"{pattern!r} matches no parameter; the nearest are {', '.join(near)}")
    return matched


def count(tree: Tree) -> int:
    """Total number of elements of all leaves."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def nbytes(tree: Tree) -> int:
    """Total bytes of all leaves; an array counts once, however many devices hold copies."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def nbits(tree: Tree) -> int:
    """Total bits of storage of all arrays; a quantized leaf counts its codes and scales. In bits,
    because JAX's int4 takes half a byte."""
    return sum(
        math.prod(leaf.shape) * jax.dtypes.itemsize_bits(leaf.dtype)
        for leaf in jax.tree.leaves(tree)
    )
