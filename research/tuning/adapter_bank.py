"""Several low-rank adapters on one weight at once, for batches whose rows use different ones.

bank(params, adapters, index_B)    parameters under which every row of a batch has its own adapter
select(params, index_B)            the same with other adapters for the rows
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research import tree
from research.ops.einsum import contract, einsum, take
from research.ops.kernels.equation import parse
from research.parallel.placement import gather, spec_entries
from research.tuning.lora_init import column_norms
from research.tuning.multi_adapter import low_rank, pad, rank_of
from research.weights.lora import RANK, LoraAdapter, magnitude_gain
from research.weights.rules import is_leaf
from research.weights.wrapper import Wrapper, gathered


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["base", "a", "b", "scale", "gain", "index_B"],
    meta_fields=["table"],
)
@dataclass(frozen=True)
class AdapterBank(Wrapper):
    """A weight with n adapters: row r of a batch uses adapter `index_B[r]`, or none for -1. With an
    index [B, T] each token of each row has its own.

    a, b, scale   those of `LoraAdapter`, with an axis n behind the stacked axes
    gain          [n, outputs], DoRA's factors m / |W + s a b|, computed when the bank was made;
                  None if no adapter has a magnitude
    index_B       int32 [B] or [B, T], repeated for each layer if stacked

    The base is contracted once for all rows.
    """

    base: Any
    a: jax.Array
    b: jax.Array
    scale: jax.Array
    gain: jax.Array | None
    index_B: jax.Array
    table: bool = False

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """`eqn` of `x`, whose first axes are those of the index, and the weight with each row's
        adapter, in the dtype of `x`. ValueError for a batch of another size than the index."""
        rows = self.index_B.ndim
        if x.shape[:rows] != self.index_B.shape:
            raise ValueError(
                f"a batch of {x.shape[:rows]} rows and an index of {self.index_B.shape}; select an "
                "adapter for each"
            )
        y = einsum(eqn, x, self.base)
        inner, outer = _products(eqn, rows)
        # Each row's own factors are gathered first, [B, inputs, R], so mixed batches are one
        # product.
        low = contract(inner, x, self._of_row(self.a, x.dtype))
        y += _along(self._scale(), y).astype(x.dtype) * contract(
            outer, low, self._of_row(self.b, x.dtype)
        )
        if self.gain is None:
            return y
        gain = self._of_row(self.gain)
        # -1 is clipped to adapter 0 when gathered: scale 0 and gain 1 undo it for rows without one.
        gain = jnp.where(_along(self.index_B >= 0, gain), gain, 1).astype(y.dtype)
        return y * jnp.expand_dims(gain, tuple(range(1, 1 + y.ndim - gain.ndim)))

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of a table [V, D] at `ids` [B, T], float32 [B, T, D]. ValueError under DoRA."""
        if self.gain is not None:
            raise ValueError(
                "a table's rows have no DoRA in a bank; merge that adapter into the weights"
            )
        # A lookup is a product with a one-hot input: of `b`, which has V along its outputs, it
        # reads one column for each token, and `a` brings it to D.
        rows = take(self.base, ids, jnp.float32)
        b_nVR = jnp.moveaxis(gather(self.b.astype(jnp.float32)), 1, -1)
        # The row's adapter [B, 1] and its ids [B, T] index together, so only [B, T, R] is read
        # and not each row's whole b.
        at = b_nVR.at[_along(self._clipped(), ids), ids]
        low_BTR = at.get(mode="clip", **_placed(*spec_entries(ids), None))
        of_a = "BTD"[: self.index_B.ndim] + "DR"
        update = contract(f"BTR,{of_a}->BTD", low_BTR, self._of_row(self.a, jnp.float32))
        return rows + _along(self._scale(), rows) * update

    def dense(self, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """Always a ValueError: a bank has as many dense weights as it has adapters."""
        raise ValueError("a bank is no one weight; attach or combine the adapters to merge them")

    def gathered(self) -> "AdapterBank":
        """This leaf with the mesh axes that only store it gathered."""
        a, b, scale, gain = jax.tree.map(gather, (self.a, self.b, self.scale, self.gain))
        return replace(self, base=gathered(self.base), a=a, b=b, scale=scale, gain=gain)

    def nbits(self) -> int:
        """Bits of storage of the weight and all adapters, without the index."""
        return tree.nbits((self.base, self.a, self.b, self.scale, self.gain))

    def _clipped(self) -> jax.Array:
        # -1 would count from the end and pick the last adapter; its scale of 0 makes 0 harmless.
        return jnp.clip(self.index_B, 0, self.scale.shape[0] - 1)

    def _scale(self) -> jax.Array:
        """float32 in the shape of the index, 0 for rows without adapter."""
        return jnp.where(self.index_B >= 0, self._of_row(self.scale), 0)

    def _of_row(self, by_adapter: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """[n, ...] as [B, ...], or [B, T, ...]."""
        by_adapter = gather(by_adapter.astype(dtype))
        return by_adapter.at[self._clipped()].get(
            mode="clip", **_placed(*spec_entries(self.index_B), *spec_entries(by_adapter)[1:])
        )


def bank(params: tree.Tree, adapters: Sequence[tree.Tree], index_B: jax.Array) -> tree.Tree:
    """Parameters under which row r of a batch uses `adapters[index_B[r]]`, or no adapter for -1.

        params = bank(params, [pirate, poet], jnp.array([0, 1, -1]))

    Adapters may differ in rank and in the weights that they adapt. ValueError for an adapter whose
    weight is missing, for other kinds of adapters, and for an index out of range.
    """
    leaves = tree.paths(params, is_leaf)
    trees = [low_rank(index, one) for index, one in enumerate(adapters)]
    _check_index(index_B, len(trees))
    for path in dict.fromkeys(path for one in trees for path in one):
        if path not in leaves:
            raise ValueError(
                f"an adapter has {path}, which the parameters have not; it was made for another "
                "model"
            )
        if any(path in one and one[path].scale.ndim > 1 for one in trees):
            raise ValueError(
                f"{path} is an expert's, which sees tokens of all texts; switch or merge its "
                "adapters"
            )
        leaves[path] = _bank(leaves[path], [one.get(path) for one in trees], index_B)
    return tree.unflatten(leaves)


def select(params: tree.Tree, index_B: jax.Array) -> tree.Tree:
    """The parameters of a bank with another choice of adapters for the rows. With the same number
    of rows nothing is compiled again: only the index changes."""

    def _chosen(leaf: Any) -> Any:
        if not isinstance(leaf, AdapterBank):
            return leaf
        *stack, count = leaf.scale.shape
        _check_index(index_B, count)
        return replace(leaf, index_B=_index(index_B, tuple(stack)))

    return jax.tree.map(
        _chosen, params, is_leaf=lambda node: isinstance(node, AdapterBank) or is_leaf(node)
    )


def _bank(base: Any, adapters: Sequence[LoraAdapter | None], index_B: jax.Array) -> AdapterBank:
    given = [one for one in adapters if one is not None]
    # The axis of adapters goes behind the stacked ones: a scan over layers slices the first axis
    # and must leave every adapter of that layer.
    stack, rank = given[0].scale.ndim, max(map(rank_of, given))
    # A weight that one of the adapters leaves alone gets a zero update for it.
    blank = replace(
        given[0], a=jnp.zeros_like(given[0].a), b=jnp.zeros_like(given[0].b), magnitude=None
    )
    # Zero ranks make all adapters stackable and change no product.
    padded = [pad(blank if one is None else one, rank) for one in adapters]
    a, b, scale = (
        jnp.stack([getattr(one, field) for one in padded], axis=stack)
        for field in ("a", "b", "scale")
    )
    gain = None
    if any(one.magnitude is not None for one in given):
        outputs = next(one.magnitude for one in given if one.magnitude is not None)
        plain = jnp.ones_like(outputs)
        # Constant while serving, so the norms are taken once and not in every product.
        gains = [
            plain
            if one.magnitude is None
            else magnitude_gain(one.magnitude, column_norms(base, one))
            for one in padded
        ]
        gain = jnp.stack(gains, axis=stack)
    return AdapterBank(
        base, a, b, scale, gain, _index(index_B, given[0].scale.shape), given[0].table
    )


def _products(eqn: str, rows: int) -> tuple[str, str]:
    """The two products of adapters of as many axes of rows for the one of a weight: of one,
    "BTD,DF->BTF" is "BTD,BDR->BTR", "BTR,BRF->BTF"."""
    of = parse(eqn)
    row, low = of.x[:rows], "".join(letter for letter in of.x if letter not in of.inputs) + RANK
    return f"{of.x},{row}{of.inputs}{RANK}->{low}", f"{low},{row}{RANK}{of.outputs}->{of.y}"


def _index(index_B: jax.Array, stack: tuple[int, ...]) -> jax.Array:
    """The index repeated for every layer, so that a scan over layers can slice it."""
    index_B = jnp.asarray(index_B, jnp.int32)
    where = _placed(*[None] * len(stack), *spec_entries(index_B))
    stacked = index_B.reshape(*(1,) * len(stack), *index_B.shape)
    return jnp.broadcast_to(stacked, (*stack, *index_B.shape), **where)


def _check_index(index_B: Any, count: int) -> None:
    # Values under jit are not known yet; such an index is clipped.
    if not isinstance(index_B, jax.core.Tracer) and not ((index_B >= -1) & (index_B < count)).all():
        raise ValueError(
            f"an index of {index_B} is none of {count} adapters; give 0 to {count - 1}, or -1 for "
            "none"
        )


def _along(rows: jax.Array, like: jax.Array) -> jax.Array:
    """[B] or [B, T] with as many axes as another array."""
    return jnp.expand_dims(rows, tuple(range(rows.ndim, like.ndim)))


def _placed(*entries: Any) -> dict[str, Any]:
    return (
        {} if jax.sharding.get_abstract_mesh().empty else {"out_sharding": PartitionSpec(*entries)}
    )
