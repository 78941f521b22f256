"""Key-value caches with S slots for each row of a batch, as one array for all layers or one each.

A token at position p is stored in slot p mod S. Without a window S is the longest text. With one,
S is the window plus the longest chunk written at once, less one, and a token is overwritten when no
later query can see it. Arrays are [B, K, S, H]: the keys of one head are contiguous, in the order
in which the products of decoding read them. In latent attention (`research.models.latent`) values
are the keys themselves, which are then kept once.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.models.adapters import with_prefix
from research.models.kv import KVCache, Prefix
from research.ops import attention
from research.ops.attention import Visibility
from research.parallel.axes import AxisRules, constrain
from research.parallel.placement import spec_entries


class SlotCache(KVCache):
    """The part that both caches share: which token each slot has, and attention over the slots.

    `positions_BS` and `segments_BS` are the position and the segment of the token in each slot, the
    same in every layer; segment 0 marks an empty slot.
    """

    positions_BS: jax.Array
    segments_BS: jax.Array

    def enter(self, positions_BT: jax.Array, segments_BT: jax.Array) -> Self:
        """See `KVCache.enter`."""
        # Slots hold the same tokens in all layers, so this index is written once, before the first
        # layer, and `attend` of every layer reads it.
        slots_BT = self._slots(positions_BT, segments_BT)
        index: Any = self  # each cache is a dataclass with the fields above
        return replace(
            index,
            positions_BS=_put(self.positions_BS, positions_BT, slots_BT),
            segments_BS=_put(self.segments_BS, segments_BT, slots_BT),
        )

    def key_positions(self) -> jax.Array:
        """Positions [B, S] of the tokens in the slots."""
        return self.positions_BS

    def attend(
        self,
        layer: jax.Array | int,
        q_BTNH: jax.Array,
        k_BTKH: jax.Array,
        v_BTKH: jax.Array,
        visibility: Visibility,
        *,
        prefix: Prefix | None = None,
        **scoring,
    ) -> tuple[jax.Array, Self]:
        """See `KVCache.attend`."""
        # Written before reading: the tokens of a chunk attend to each other through the cache too.
        slots_BT = self._slots(visibility.q_positions_BT, visibility.q_segments_BT)
        cache = self.write(layer, k_BTKH, v_BTKH, slots_BT)
        k_BSKH, v_BSKH = (
            jnp.swapaxes(kv_BKSH, 1, 2).astype(q_BTNH.dtype) for kv_BKSH in cache.read(layer)
        )
        # Empty slots have segment 0, which no query of a text sees, so their content never matters.
        visibility = replace(
            visibility, k_positions_BS=self.positions_BS, k_segments_BS=self.segments_BS
        )
        k_BSKH, v_BSKH, visibility = with_prefix(prefix, k_BSKH, v_BSKH, visibility)
        return attention.attend(q_BTNH, k_BSKH, v_BSKH, visibility, **scoring), cache

    @abstractmethod
    def write(
        self, layer: jax.Array | int, k_BTKH: jax.Array, v_BTKH: jax.Array, slots_BT: jax.Array
    ) -> Self:
        """The cache with a layer's new keys and values in these slots. Tokens whose slot is S, one
        past the last, are not written."""

    @abstractmethod
    def read(self, layer: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B, K, S, H] of a layer."""

    def _slots(self, positions_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
        """The slot of each token, int [B, T]; S, out of range, for padding."""
        slots = self.positions_BS.shape[1]
        # A ring: past S tokens the oldest is overwritten. Out of range is what `_put` drops.
        return jnp.where(segments_BT > 0, positions_BT % slots, slots)


_index_fields = ["positions_BS", "segments_BS"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["key_LBKSH", "value_LBKSH", *_index_fields],
    meta_fields=[],
)
@dataclass(frozen=True)
class StackedCache(SlotCache):
    """One array [L, B, K, S, H] for the keys of all layers and one for the values, None where these
    are the keys; a scan over layers carries and indexes them."""

    key_LBKSH: jax.Array
    value_LBKSH: jax.Array | None
    positions_BS: jax.Array
    segments_BS: jax.Array

    def write(self, layer, k_BTKH, v_BTKH, slots_BT) -> Self:
        """See `SlotCache.write`; `layer` may be traced."""
        cache = replace(self, key_LBKSH=_put(self.key_LBKSH, k_BTKH, slots_BT, layer))
        if self.value_LBKSH is None:
            return cache
        return replace(cache, value_LBKSH=_put(self.value_LBKSH, v_BTKH, slots_BT, layer))

    def read(self, layer) -> tuple[jax.Array, jax.Array]:
        # A layer's number is traced inside a scan, where a Python index would not do.
        index = partial(jax.lax.dynamic_index_in_dim, index=layer, axis=0, keepdims=False)
        k_BKSH = index(self.key_LBKSH)
        return k_BKSH, k_BKSH if self.value_LBKSH is None else index(self.value_LBKSH)

    def layered(self) -> "LayeredCache":
        """The same cache with an array for each layer, for decoding with a tuple of layers."""
        # A copy, made once before decoding: in the loop each layer's array is then updated in
        # place.
        count = self.key_LBKSH.shape[0]
        keys = tuple(self.key_LBKSH[layer] for layer in range(count))
        values = None
        if self.value_LBKSH is not None:
            values = tuple(self.value_LBKSH[layer] for layer in range(count))
        return LayeredCache(keys, values, self.positions_BS, self.segments_BS)

    def taken(self, rows_B: jax.Array) -> Self:
        """The cache whose row b is the row `rows_B[b]` of this one."""
        value_LBKSH = self.value_LBKSH
        return replace(
            self,
            key_LBKSH=self.key_LBKSH[:, rows_B],
            value_LBKSH=None if value_LBKSH is None else value_LBKSH[:, rows_B],
            positions_BS=self.positions_BS[rows_B],
            segments_BS=self.segments_BS[rows_B],
        )

    def first_row(self) -> tuple[jax.Array, jax.Array]:
        """Keys and values [L, S, K, H] of the first row, slot by slot."""
        value_LBKSH = self.key_LBKSH if self.value_LBKSH is None else self.value_LBKSH
        return jnp.swapaxes(self.key_LBKSH[:, 0], 1, 2), jnp.swapaxes(value_LBKSH[:, 0], 1, 2)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["keys_BKSH", "values_BKSH", *_index_fields],
    meta_fields=[],
)
@dataclass(frozen=True)
class LayeredCache(SlotCache):
    """Arrays [B, K, S, H] for each layer, for a stack that runs unrolled: reading a layer copies
    nothing. Layers are numbered by Python integers, not by traced ones. Values are None where they
    are the keys."""

    keys_BKSH: tuple[jax.Array, ...]
    values_BKSH: tuple[jax.Array, ...] | None
    positions_BS: jax.Array
    segments_BS: jax.Array

    def write(self, layer, k_BTKH, v_BTKH, slots_BT) -> Self:
        """See `SlotCache.write`; `layer` is a Python integer."""
        if slots_BT.size == 1:
            # The one token is written twice, so that the update stays a scatter. XLA's CPU backend
            # fuses a single update into both of its users, attention and the returned cache, and
            # copies the cache for that.
            slots_BT, k_BTKH, v_BTKH = (
                jnp.repeat(x, 2, axis=1) for x in (slots_BT, k_BTKH, v_BTKH)
            )
        keys = _changed(self.keys_BKSH, layer, partial(_put, new=k_BTKH, slots_BT=slots_BT))
        if self.values_BKSH is None:
            return replace(self, keys_BKSH=keys)
        values = _changed(self.values_BKSH, layer, partial(_put, new=v_BTKH, slots_BT=slots_BT))
        return replace(self, keys_BKSH=keys, values_BKSH=values)

    def read(self, layer) -> tuple[jax.Array, jax.Array]:
        """See `SlotCache.read`; `layer` is a Python integer."""
        values = self.keys_BKSH if self.values_BKSH is None else self.values_BKSH
        return self.keys_BKSH[layer], values[layer]

    def taken(self, rows_B: jax.Array) -> Self:
        """The cache whose row b is the row `rows_B[b]` of this one."""
        return jax.tree.map(lambda x_B: x_B[rows_B], self)


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
    *,
    values: bool = True,
) -> StackedCache:
    """An empty cache for texts of up to `length` tokens, of which at most `chunk` enter at a time.

    `window` is the longest window of any layer, 0 where one sees the whole text. `rules` place the
    arrays on the mesh. Without `values` these are the keys.
    """
    # The first token of a chunk sees window - 1 tokens before it, which the chunk's own slots must
    # not overwrite.
    slots = min(length, window + chunk - 1) if window else length
    # Layers that lie on stages are gathered for decoding, so every device caches those of all.
    index, content = ("batch", "position"), ("position", "batch", "kv_heads", "position", "head")
    # Zeros are made for each array anew: two of them sharing a buffer could not be donated.
    shape = (layers, batch, kv_heads, slots, head_size)
    key_LBKSH = constrain(jnp.zeros(shape, dtype), content, rules)
    value_LBKSH = constrain(jnp.zeros(shape, dtype), content, rules) if values else None
    # Segment 0 everywhere: all slots are empty.
    positions_BS, segments_BS = (
        constrain(jnp.zeros((batch, slots), jnp.int32), index, rules) for _ in range(2)
    )
    return StackedCache(key_LBKSH, value_LBKSH, positions_BS, segments_BS)


def _changed(
    layers: tuple[jax.Array, ...], layer: int, change: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, ...]:
    """The arrays of all layers, with `change` applied to that of `layer`."""
    # The other arrays are handed on as they are, so XLA can alias each with its input.
    return (*layers[:layer], change(layers[layer]), *layers[layer + 1 :])


def _put(
    cached: jax.Array, new: jax.Array, slots_BT: jax.Array, layer: jax.Array | int | None = None
) -> jax.Array:
    """`cached` with the values of T new tokens in their slots.

    `cached` is [B, S] and `new` [B, T]; or [B, K, S, H] and [B, T, K, H]. With a `layer`, `cached`
    is [L, B, K, S, H] and only that layer is written. XLA updates a donated or carried cache in
    place; a copy for every token would cost more than the model.
    """

    def _scatter(cached, new, slots_BT, layer):
        # [B, 1] against [B, T]: each row writes into its own slots.
        rows_B1 = jnp.arange(slots_BT.shape[0])[:, None]
        at = (rows_B1, slots_BT) if cached.ndim == 2 else (rows_B1, slice(None), slots_BT)
        at = at if layer is None else (layer, *at)
        # "drop": the slot of padding is out of range.
        return cached.at[at].set(new.astype(cached.dtype), mode="drop")

    if jax.sharding.get_abstract_mesh().empty:
        return _scatter(cached, new, slots_BT, layer)
    # Rows and heads may be split over devices, slots never are, so each device writes its own part.
    # The sharding rules of a scatter cannot express that, hence shard_map.
    cached_axes = spec_entries(cached)
    batch_axes, *other_axes = cached_axes if layer is None else cached_axes[1:]
    # `cached` is split as [B, K, S, H] and `new` as [B, T, K, H].
    head_axes = (other_axes[0], other_axes[2]) if len(other_axes) == 3 else ()
    new_spec = PartitionSpec(batch_axes, None, *head_axes)
    slots_spec = PartitionSpec(batch_axes, None)
    new, slots_BT = jax.reshard(new, new_spec), jax.reshard(slots_BT, slots_spec)
    layer_spec = None if layer is None else PartitionSpec()
    specs = (PartitionSpec(*cached_axes), new_spec, slots_spec, layer_spec)
    write = jax.shard_map(_scatter, in_specs=specs, out_specs=specs[0])
    return write(cached, new, slots_BT, None if layer is None else jnp.asarray(layer))
