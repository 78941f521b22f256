"""Several low-rank adapters of one model: padded to one structure, or combined into one adapter.
For batches that mix them, see adapter_bank.py.

alike(adapters)                trees of one structure, so that one compiled program takes any of
them combine(adapters, weights)     one adapter for a weighted sum of several
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp

from research import tree
from research.ops.einsum import contract
from research.weights.lora import LoraAdapter
from research.weights.rules import is_leaf

METHODS = ("svd", "linear", "cat")


def alike(adapters: Sequence[tree.Tree], rank: int | None = None) -> list[tree.Tree]:
    """The adapters, padded with zeros to the same paths and, at each path, the same rank. No result
    changes; dropout is removed.

    `rank` is the rank at every path, so that an adapter loaded later fits too; None takes the
    highest at each path. ValueError for a rank below an adapter's, and for a path where only some
    adapters have a magnitude (DoRA), since no constant magnitude leaves a weight unchanged.
    """
    trees = [low_rank(index, one) for index, one in enumerate(adapters)]
    padded: list[dict[str, LoraAdapter]] = [{} for _ in trees]
    for path in dict.fromkeys(path for one in trees for path in one):
        present = [one[path] for one in trees if path in one]
        highest = max(map(rank_of, present))
        if rank is not None and rank < highest:
            raise ValueError(
                f"rank={rank} is below the {highest} of an adapter of {path}; set it to the "
                "highest of all"
            )
        decomposed = {one.magnitude is not None for one in present}
        if len(decomposed) > 1 or (True in decomposed and len(present) < len(trees)):
            raise ValueError(
                f"{path} has a magnitude (DoRA) in some adapters alone; mix them in a bank, or "
                "merge them"
            )
        _check_sizes(path, present)
        # A path that an adapter lacks gets an update of zero there.
        blank = replace(present[0], a=jnp.zeros_like(present[0].a), b=jnp.zeros_like(present[0].b))
        for one, result in zip(trees, padded):
            result[path] = pad(one.get(path, blank), rank or highest)
    return [tree.unflatten(result) for result in padded]


def pad(adapter: LoraAdapter, rank: int) -> LoraAdapter:
    """The adapter with `a` and `b` padded with zeros to this rank, and without dropout. Its update
    does not change: `scale` keeps the original alpha / R."""
    # `scale` has exactly the stacked axes, so its number of axes is the place of R in b [layers,
    # R, outputs]. In `a` the rank comes last.
    more, at = rank - rank_of(adapter), adapter.scale.ndim
    a = jnp.pad(adapter.a, [(0, 0)] * (adapter.a.ndim - 1) + [(0, more)])
    b = jnp.pad(adapter.b, [(0, more if axis == at else 0) for axis in range(adapter.b.ndim)])
    return replace(adapter, a=a, b=b, dropout=0.0)


def combine(
    adapters: Sequence[tree.Tree],
    weights: Sequence[float],
    method: str = "svd",
    rank: int | None = None,
) -> tree.Tree:
    """One adapter for the weighted sum of several, with scale 1, as peft's `add_weighted_adapter`
    computes it.

        cat      exact; its rank is the sum of the ranks
        svd      the best approximation of rank `rank`; None takes the highest of the ranks
        linear   sums of a and of b, each times the root of weight * scale: keeps the adapters'
                 rank, but is not exact, because the product of two sums has mixed terms

        combine([pirate, poet], [0.7, 0.3])

    ValueError for an unknown method, a number of weights other than that of adapters, DoRA, and
    different ranks with "linear".
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}; choose one of {', '.join(METHODS)}")
    if len(weights) != len(adapters) or not adapters:
        raise ValueError(f"{len(weights)} weights for {len(adapters)} adapters; give one for each")
    if rank is not None and method != "svd":
        raise ValueError(f"rank={rank} is set and method={method!r} has its own; leave it out")
    trees, combined = [low_rank(index, one) for index, one in enumerate(adapters)], {}
    for path in dict.fromkeys(path for one in trees for path in one):
        present = [(one[path], weight) for one, weight in zip(trees, weights) if path in one]
        _check_sizes(path, [one for one, _ in present])
        if any(one.magnitude is not None for one, _ in present):
            raise ValueError(
                f"{path} has a magnitude (DoRA), and those do not add; merge that adapter into the "
                "weights"
            )
        if method == "linear" and len({rank_of(one) for one, _ in present}) > 1:
            raise ValueError(
                f"the adapters of {path} have different ranks, which linear cannot add; take svd "
                "or cat"
            )
        combined[path] = _combined(present, method, rank)
    return tree.unflatten(combined)


def _check_sizes(path: str, present: Sequence[LoraAdapter]) -> None:
    if (
        len({(one.a.shape[:-1], one.b.shape[one.scale.ndim + 1 :], one.table) for one in present})
        > 1
    ):
        raise ValueError(
            f"the adapters of {path} have different sizes; they were made for different models"
        )


def _combined(
    present: Sequence[tuple[LoraAdapter, float]], method: str, rank: int | None
) -> LoraAdapter:
    first, stack = present[0][0], present[0][0].scale.ndim

    def _scaled(x: jax.Array, factor: jax.Array) -> jax.Array:
        return x.astype(jnp.float32) * factor.reshape(*factor.shape, *(1,) * (x.ndim - stack))

    # The result has scale 1, so each adapter's own is part of its factor.
    factors = [weight * one.scale for one, weight in present]
    if method == "linear":
        roots = [jnp.sqrt(jnp.abs(factor)) for factor in factors]
        # peft has a negative weight's sign on its A, which is the second factor of a table.
        signed = [jnp.where(factor < 0, -root, root) for factor, root in zip(factors, roots)]
        of_a, of_b = (roots, signed) if first.table else (signed, roots)
        a = sum(_scaled(one.a, factor) for (one, _), factor in zip(present, of_a))
        b = sum(_scaled(one.b, factor) for (one, _), factor in zip(present, of_b))
    else:
        # Side by side along R, products of blocks add up: sum of s a b. The factors go into `a`.
        a = jnp.concatenate(
            [_scaled(one.a, factor) for (one, _), factor in zip(present, factors)], axis=-1
        )
        b = jnp.concatenate([one.b.astype(jnp.float32) for one, _ in present], axis=stack)
        if method == "svd":
            a, b = _shortened(
                a, b, stack, max(rank_of(one) for one, _ in present) if rank is None else rank
            )
    return LoraAdapter(a, b, jnp.ones_like(first.scale), table=first.table)


def _shortened(a: jax.Array, b: jax.Array, stack: int, rank: int) -> tuple[jax.Array, jax.Array]:
    """(a, b) of the best approximation of the product a b with at most this rank; the new `a` has
    orthonormal columns, `b` the singular values."""
    inner, outer = a.shape[stack:-1], b.shape[stack + 1 :]
    a_SIR = a.reshape(-1, math.prod(inner), a.shape[-1])
    b_SRO = b.reshape(len(a_SIR), a.shape[-1], -1)
    # Eckart and Young: cutting the singular values off after R gives the nearest matrix of rank R
    # in the Frobenius norm. The product is decomposed whole, one [I, O] for each stacked matrix.
    left, values, right = jnp.linalg.svd(
        contract("SIR,SRO->SIO", a_SIR, b_SRO), full_matrices=False
    )
    # A rank over the smaller side of the matrix has no further singular values to hold.
    rank = min(rank, values.shape[-1])
    right = values[:, :rank, None] * right[:, :rank]
    return left[:, :, :rank].reshape(*a.shape[:stack], *inner, rank), right.reshape(
        *a.shape[:stack], rank, *outer
    )


def low_rank(index: int, adapters: tree.Tree) -> dict[str, LoraAdapter]:
    """The adapters of a tree by path. ValueError, naming the tree's number `index`, for other kinds
    of adapters."""
    leaves = tree.paths(adapters, is_leaf)
    for path, leaf in leaves.items():
        if not isinstance(leaf, LoraAdapter):
            raise ValueError(
                f"{path} of adapter {index} is no low-rank adapter, which alone mix; load it by "
                "itself"
            )
    return leaves


def rank_of(adapter: LoraAdapter) -> int:
    """The rank of an adapter, columns of zeros included."""
    return adapter.a.shape[-1]
