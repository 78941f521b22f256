"""Attention over a cache whose heads are split over devices: each device has the keys and values of
its own heads, and nothing is exchanged but what does not divide.

Letters: B batch, T tokens of a call, N query heads, K key heads, H head size.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import PartitionSpec

from research.models.kv import Prefix
from research.ops.attention import Visibility
from research.parallel.placement import partition_spec, reshard_to, spec_entries

Cache = TypeVar("Cache")
# (cache, q, k, v, visibility, prefix, sinks) -> (what is attended to, the cache)
Attend = Callable[..., tuple[jax.Array, Any]]


def by_head(
    attend: Attend,
    cache: Cache,
    pool: jax.Array,
    heads_axis: int,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    visibility: Visibility,
    prefix: Prefix | None,
    sinks_N: jax.Array | None,
) -> tuple[jax.Array, Cache]:
    """`attend` on each device with its part of the heads, which is that of the pool; where the pool
    is whole, since its K heads do not divide, with all of them.

    The arrays of a cache with 4 or more axes have K at `heads_axis`, counted from the last.
    """
    entry = spec_entries(pool)[heads_axis]
    split = PartitionSpec(None, None, entry, None)

    def _place(x: jax.Array) -> PartitionSpec:
        around = [None] * (x.ndim + heads_axis), [None] * (-1 - heads_axis)
        return PartitionSpec(*around[0], entry, *around[1]) if x.ndim >= 4 else PartitionSpec()

    arguments = cache, q_BTNH, k_BTKH, v_BTKH, visibility, prefix, sinks_N
    places = (
        jax.tree.map(_place, cache),
        *[split] * 3,
        jax.tree.map(lambda _: PartitionSpec(), visibility),
        jax.tree.map(lambda _: PartitionSpec(None, entry, None), prefix),
        jax.tree.map(lambda _: PartitionSpec(entry), sinks_N),
    )
    out_BTNH, cache = jax.shard_map(
        attend, in_specs=places, out_specs=(split, places[0]), check_vma=False
    )(*jax.tree.map(_moved, arguments, places))
    return reshard_to(out_BTNH, partition_spec(q_BTNH)), cache


def _moved(x: jax.Array, place: PartitionSpec) -> jax.Array:
    return reshard_to(x, PartitionSpec(*place, *[None] * (x.ndim - len(place))))
