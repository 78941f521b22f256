"""Several adapters of one model in one batch: each token of a step has that of its text."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research.tree import Tree
from research.tuning.adapter_bank import bank

NONE = -1  # the index of a text without an adapter


def with_bank(params: Tree, adapters: Sequence[Tree]) -> Tree:
    """The parameters with a bank of adapters, in the layout that they have: stacked layers, or a
    tuple of layers. `research.tuning.adapter_bank.select` then chooses one for each token.
    ValueError as from `research.tuning.adapter_bank.bank`."""
    return _banked(params, adapters) if adapters else params


def _banked(params: Any, adapters: Sequence[Tree]) -> Any:
    if isinstance(params, tuple):
        return tuple(
            _banked(layer, [jax.tree.map(lambda x, n=number: x[n], one) for one in adapters])
            for number, layer in enumerate(params)
        )
    # Of tuples of layers each is a tree of its own, whose weights have the paths of the stack's.
    apart = [name for name in ("dense", "layers") if _has_tuple(params.get(name))]
    rest = {name: part for name, part in params.items() if name not in apart}
    shared = [{name: x for name, x in one.items() if name not in apart} for one in adapters]
    made = {name: _banked(params[name], [one.get(name, {}) for one in adapters]) for name in apart}
    return {**bank(rest, shared, jnp.full((1, 1), NONE)), **made}


def _has_tuple(part: Any) -> bool:
    return isinstance(part, tuple) or isinstance(part, dict) and _has_tuple(part.get("layers"))
