"""The tokens of a batch that a loss counts, where it is known how few of a row they are.

An output head is the largest product of a small model: BERT base has 24 million parameters in its
vocabulary's table and 86 million in all its layers. Masked language modelling counts one token in
seven, so the others need no logits. By count of FLOPs; on no accelerator was it timed.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.parallel.placement import local_shape, spec_entries

# What a head reads: states [B, T, D], targets [B, T] and weights [B, T].
Tokens = tuple[jax.Array, jax.Array, jax.Array]


@dataclass(frozen=True)
class Bound:
    """How many tokens of a row count: at most `tokens`, always if `hard` and mostly if not."""

    tokens: int
    hard: bool


def part_predicted(tokens: Tokens, most: int) -> tuple[Tokens, Tokens | None]:
    """(the first `most` tokens of each row, counted ones in front; the row's other tokens).

    Nothing is dropped: a row of more than `most` counted tokens has some of them in the second
    part. That part is None where there is only one, because `most` is the whole length or a mesh
    splits the rows along T."""
    length = tokens[0].shape[1]
    if most >= length or local_shape(tokens[0])[1] != length:
        return tokens, None
    if jax.sharding.get_abstract_mesh().empty:
        return _parted(*tokens, most=most)
    # Each device has whole rows, and sorts and gathers its own.
    specs = tuple(PartitionSpec(*spec_entries(x)) for x in tokens)
    split = jax.shard_map(partial(_parted, most=most), in_specs=specs, out_specs=(specs, specs))
    return split(*tokens)


def _parted(states_BTD, targets_BT, weights_BT, *, most: int) -> tuple[Tokens, Tokens]:
    # A stable sort: tokens that count keep their order, and so do those that do not.
    order_BT = jnp.argsort(weights_BT == 0, axis=1, stable=True)
    rows_B1 = jnp.arange(order_BT.shape[0])[:, None]

    def _take(at_BP: jax.Array) -> Tokens:
        # Said to be unique, so that the gradient is a scatter without a sum: the same bits in any
        # order.
        states_BPD, targets_BP, weights_BP = (
            x.at[rows_B1, at_BP].get(mode="promise_in_bounds", unique_indices=True)
            for x in (states_BTD, targets_BT, weights_BT)
        )
        return states_BPD, targets_BP, weights_BP

    return _take(order_BT[:, :most]), _take(order_BT[:, most:])
