"""The key-value cache of decoding: a plain pytree, passed in and out.

Slots hold keys and values with the position and segment of the token they came from (segment 0:
empty), so attention over a cache is attention like any other. A token of position p lives in slot p
mod S: without a window S covers the whole text, with one S is the window plus the longest chunk
written at once, older tokens being overwritten when no query can see them. Heads come before slots,
so that a head's keys lie together, as the products of decoding read them.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.parallel.axes import AxisRules, constrain
from research.parallel.placement import spec


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["key_LBKSH", "value_LBKSH", "positions_BS", "segments_BS"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Cache:
    """Keys and values of all layers, and what is in each slot.

    `apart`, a tuple of the layers [B, K, S, H] stands for an array: an unrolled stack then copies
    no layer out to read it.
    """

    key_LBKSH: jax.Array | tuple[jax.Array, ...]
    value_LBKSH: jax.Array | tuple[jax.Array, ...]
    positions_BS: jax.Array
    segments_BS: jax.Array

    @property
    def slots(self) -> int:
        return self.positions_BS.shape[1]

    def claim(self, positions_BT: jax.Array, segments_BT: jax.Array) -> "Cache":
        """The cache with these tokens entered in its index; padding (segment 0) claims no slot."""
        slots_BT = self.places(positions_BT, segments_BT)
        positions_BS = _put(self.positions_BS, positions_BT, slots_BT)
        segments_BS = _put(self.segments_BS, segments_BT, slots_BT)
        return replace(self, positions_BS=positions_BS, segments_BS=segments_BS)

    def apart(self) -> "Cache":
        """The cache with each layer an array of its own."""
        if isinstance(self.key_LBKSH, tuple):
            return self
        keys, values = (
            tuple(kv[layer] for layer in range(kv.shape[0]))
            for kv in (self.key_LBKSH, self.value_LBKSH)
        )
        return replace(self, key_LBKSH=keys, value_LBKSH=values)

    def places(self, positions_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
        """The slot of each token; that of padding lies outside the cache."""
        return jnp.where(segments_BT > 0, positions_BT % self.slots, self.slots)


@dataclass(frozen=True)
class LayerCache:
    """One layer's view of the cache: where this call's tokens go."""

    cache: Cache
    layer: jax.Array | int
    slots_BT: jax.Array

    def write(self, k_BTKH: jax.Array, v_BTKH: jax.Array) -> "LayerCache":
        """The cache with this layer's new keys and values in their slots."""
        keys = self._entered(self.cache.key_LBKSH, k_BTKH)
        values = self._entered(self.cache.value_LBKSH, v_BTKH)
        return replace(self, cache=replace(self.cache, key_LBKSH=keys, value_LBKSH=values))

    def read(self, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        """This layer's keys and values, [B, S, K, H]."""
        k_BKSH, v_BKSH = self._own(self.cache.key_LBKSH), self._own(self.cache.value_LBKSH)
        return jnp.swapaxes(k_BKSH, 1, 2).astype(dtype), jnp.swapaxes(v_BKSH, 1, 2).astype(dtype)

    def _own(self, layers):
        if isinstance(layers, tuple):
            return layers[self.layer]
        return jax.lax.dynamic_index_in_dim(layers, self.layer, axis=0, keepdims=False)

    def _entered(self, layers, new_BTKH: jax.Array):
        if not isinstance(layers, tuple):
            return _put(layers, new_BTKH, self.slots_BT, self.layer)
        slots_BT = self.slots_BT
        if slots_BT.size == 1:
            # Written twice, it stays a scatter. A single update the CPU backend fuses into what
            # reads the cache and once more into what keeps it, and copies the cache for that.
            slots_BT, new_BTKH = jnp.repeat(slots_BT, 2, axis=1), jnp.repeat(new_BTKH, 2, axis=1)
        own = _put(layers[self.layer], new_BTKH, slots_BT)
        return (*layers[: self.layer], own, *layers[self.layer + 1 :])


def make_cache(
    layers: int,
    batch: int,
    length: int,
    kv_heads: int,
    head_size: int,
    dtype: jnp.dtype,
    window: int,
    chunk: int,
    rules: AxisRules,
) -> Cache:
    """An empty cache for texts of up to `length` tokens, written at most `chunk` at a time."""
    slots = min(length, window + chunk - 1) if window else length
    index, content = ("batch", "position"), ("layers", "batch", "kv_heads", "position", "head")
    # Each array its own: a donated buffer must not be given twice.
    keys, values = (
        constrain(jnp.zeros((layers, batch, kv_heads, slots, head_size), dtype), content, rules)
        for _ in range(2)
    )
    positions_BS, segments_BS = (
        constrain(jnp.zeros((batch, slots), jnp.int32), index, rules) for _ in range(2)
    )
    return Cache(keys, values, positions_BS, segments_BS)


def _put(
    cached: jax.Array, new: jax.Array, slots_BT: jax.Array, layer: jax.Array | int | None = None
) -> jax.Array:
    """`cached` [B, S] with `new` [B, T] in its slots, [B, K, S, H] with `new` [B, T, K, H], or all
    layers of the latter.

    Written in place where the caller's buffer may be: a copy of the cache for every token would
    cost more than the model.
    """

    def scatter(cached, new, slots_BT, layer):
        rows_B1 = jnp.arange(slots_BT.shape[0])[:, None]
        at = (rows_B1, slots_BT) if cached.ndim == 2 else (rows_B1, slice(None), slots_BT)
        at = at if layer is None else (layer, *at)
        return cached.at[at].set(new.astype(cached.dtype), mode="drop")

    if jax.sharding.get_abstract_mesh().empty:
        return scatter(cached, new, slots_BT, layer)
    # Rows and heads are split, slots are not: each device writes its own part, which the scatter's
    # types cannot tell.
    where = spec(cached)
    rows, *heads = where if layer is None else where[1:]
    heads = (heads[0], heads[2]) if len(heads) == 3 else ()
    parts = PartitionSpec(rows, None, *heads), PartitionSpec(rows, None)
    new, slots_BT = jax.reshard(new, parts[0]), jax.reshard(slots_BT, parts[1])
    specs = (PartitionSpec(*where), *parts, None if layer is None else PartitionSpec())
    write = jax.shard_map(scatter, in_specs=specs, out_specs=specs[0])
    return write(cached, new, slots_BT, None if layer is None else jnp.asarray(layer))
