"""The key-value cache of decoding: a plain pytree, passed in and out.

Slots hold keys and values with the position and segment of the token they came from (segment 0: empty), so attention
over a cache is attention like any other. A token of position p lives in slot p mod S: without a window S covers the
whole text, with one S is the window plus the longest chunk written at once, older tokens being overwritten when no
query can see them.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.axes import constrain
from research.ops.einsum import spec


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["key_LBKSH", "value_LBKSH", "positions_BS", "segments_BS"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Cache:
    """Keys and values of all layers, and what is in each slot."""

    key_LBKSH: jax.Array
    value_LBKSH: jax.Array
    positions_BS: jax.Array
    segments_BS: jax.Array

    @property
    def slots(self) -> int:
        return self.positions_BS.shape[1]

    def claim(self, positions_BT: jax.Array, segments_BT: jax.Array) -> "Cache":
        """The cache with these tokens entered in its index; padding (segment 0) claims no slot."""
        put = partial(_put, slots_BT=self.places(positions_BT, segments_BT))
        return replace(
            self, positions_BS=put(self.positions_BS, positions_BT), segments_BS=put(self.segments_BS, segments_BT)
        )

    def places(self, positions_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
        """The slot of each token; that of padding lies outside the cache."""
        return jnp.where(segments_BT > 0, positions_BT % self.slots, self.slots)


@dataclass(frozen=True)
class LayerCache:
    """One layer's view of the cache: where this call's tokens go."""

    cache: Cache
    layer: jax.Array
    slots_BT: jax.Array

    def write(self, k_BTKH: jax.Array, v_BTKH: jax.Array) -> "LayerCache":
        """The cache with this layer's new keys and values in their slots."""
        put = partial(_put, slots_BT=self.slots_BT, layer=self.layer)
        keys, values = put(self.cache.key_LBKSH, k_BTKH), put(self.cache.value_LBKSH, v_BTKH)
        return replace(self, cache=replace(self.cache, key_LBKSH=keys, value_LBKSH=values))

    def read(self, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        """This layer's keys and values, [B, S, K, H]."""
        pick = partial(jax.lax.dynamic_index_in_dim, index=self.layer, axis=0, keepdims=False)
        keys_BKSH, values_BKSH = pick(self.cache.key_LBKSH), pick(self.cache.value_LBKSH)
        return tuple(jnp.swapaxes(x, 1, 2).astype(dtype) for x in (keys_BKSH, values_BKSH))


def make_cache(
    layers: int, batch: int, length: int, kv_heads: int, head_size: int, dtype: jnp.dtype, window: int, chunk: int
) -> Cache:
    """An empty cache for texts of up to `length` tokens, written at most `chunk` at a time."""
    slots = min(length, window + chunk - 1) if window else length
    axes = ("layers", "batch", "kv_heads", "position", "head")
    # Each array its own: a donated buffer must not be given twice.
    keys, values = (constrain(jnp.zeros((layers, batch, kv_heads, slots, head_size), dtype), axes) for _ in range(2))
    positions_BS, segments_BS = (constrain(jnp.zeros((batch, slots), jnp.int32), ("batch", "position")) for _ in range(2))
    return Cache(keys, values, positions_BS, segments_BS)


def _put(cached: jax.Array, new: jax.Array, slots_BT: jax.Array, layer: jax.Array | int | None = None) -> jax.Array:
    """`cached` [B, S] with `new` [B, T] in its slots, or layer `layer` of [L, B, K, S, H] with [B, T, K, H], in place."""

    def scatter(cached, new, slots_BT, layer):
        rows_B1 = jnp.arange(slots_BT.shape[0])[:, None]
        at = (rows_B1, slots_BT) if layer is None else (layer, rows_B1, slice(None), slots_BT)
        return cached.at[at].set(new.astype(cached.dtype), mode="drop")

    if jax.sharding.get_abstract_mesh().empty:
        return scatter(cached, new, slots_BT, layer)
    # Rows and heads are split, slots are not: each device writes its own part, which the scatter's types cannot tell.
    where = spec(cached)
    batch, inner = (where[0], ()) if layer is None else (where[1], (where[2], where[4]))
    specs = PartitionSpec(batch, None, *inner), PartitionSpec(batch, None)
    new, slots_BT = (jax.reshard(x, s) for x, s in zip((new, slots_BT), specs))
    parts = (PartitionSpec(*where), *specs, None if layer is None else PartitionSpec())
    write = jax.shard_map(scatter, in_specs=parts, out_specs=parts[0])
    return write(cached, new, slots_BT, layer if layer is None else jnp.asarray(layer))
