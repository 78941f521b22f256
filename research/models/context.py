"""The inputs of a stack's layers beside states and parameters: visibility, rotation, dropout key.

Layers of one kind (`research.models.kinds`) share them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from research.models.config import ModelConfig
from research.models.kinds import KINDS, layer_pattern
from research.models.soft import spans
from research.ops.attention import Bias, Visibility
from research.parallel.placement import gather_axis

# What a decoder reads of an encoder: keys and values [L, B, S, K, H] for the cross-attention of its
# layers, and the batch fields of the encoder's text.
Memory = tuple[tuple[jax.Array, jax.Array], Mapping[str, jax.Array]]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["visibility", "rotation", "query_scale"],
    meta_fields=[],
)
@dataclass(frozen=True)
class LayerKind:
    """How layers of one kind attend: which key a query sees, the rotation (cos, sin) of queries and
    keys, None without rotary positions, and a factor [B, T, 1, 1] of queries, None for 1."""

    visibility: Visibility
    rotation: tuple[jax.Array, jax.Array] | None = None
    query_scale: jax.Array | None = None


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["kinds", "counted_BT", "bias", "memory_LBSKH", "memory_visibility", "key"],
    meta_fields=[],
)
@dataclass(frozen=True)
class LayerContext:
    """The inputs that `stack.run` gives to every layer, beside the layer's parameters and states.

    kinds              a `LayerKind` by the name of each kind of layer that the model has
    counted_BT         1 for tokens, 0 for padding, float32
    bias               added to the scores of self-attention (relative positions of T5)
    memory_LBSKH       keys and values of all layers' cross-attention, from the encoder's states
    memory_visibility  which of those keys a query sees
    key                random key of dropout, None for no dropout
    """

    kinds: dict[str, LayerKind]
    counted_BT: jax.Array
    bias: Bias = None
    memory_LBSKH: tuple[jax.Array, jax.Array] | None = None
    memory_visibility: Visibility | None = None
    key: jax.Array | None = None

    def dropout_keys(self, index: jax.Array | int) -> list:
        """Three keys, for the layer's attention, cross-attention and feed-forward branch; three
        times None without dropout."""
        if self.key is None:
            return [None] * 3
        # Folded with the layer's number, so that layers differ though a scan traces one of them.
        return list(jax.random.split(jax.random.fold_in(self.key, index), 3))


def make_context(
    c: ModelConfig,
    positions_BT: jax.Array,
    segments_BT: jax.Array | None,
    *,
    causal: bool,
    packed: bool = True,
    shared: bool = False,
    documents: int = 0,
    bias: Bias = None,
    memory: Memory | None = None,
    key: jax.Array | None = None,
    lengths_B: jax.Array | None = None,
    blocks_BT: jax.Array | None = None,
    spans_BT2: jax.Array | None = None,
) -> LayerContext:
    """The context of a stack for tokens [B, T] that attend to each other; over a cache, which puts
    in its own keys, also to earlier ones; the texts of its rows are `lengths_B` long. `Visibility`
    has `packed`, `shared` and `documents`; `memory` is the encoder's. Segments of None say that
    every row is one document without padding. `blocks_BT` and `spans_BT2`: "blocks" or "spans" of
    the batch (`research.models.soft`).
    """
    single = segments_BT is None
    segments_BT = jnp.ones_like(positions_BT) if segments_BT is None else segments_BT
    # Tokens are queries and keys alike; a cache replaces the keys by its own in `attend`.
    tokens = (positions_BT, positions_BT, segments_BT, segments_BT)
    rates = {name: KINDS[name].rates(c) for name in dict.fromkeys(layer_pattern(c))}
    lengths_BT = None
    if c.rope_scaling.by_length:
        lengths_BT = _lengths(positions_BT, None if single else segments_BT, lengths_B)
    growth = _query_scale(c, positions_BT) if c.query_growth else None
    blocks = _blocks(blocks_BT, spans_BT2, positions_BT, segments_BT)
    how = {"packed": packed, "shared": shared, "single": single}
    seen = Visibility(*tokens, causal, **how, documents=documents, blocks=blocks)
    kinds = {}
    # Once for each kind and not for each layer: rotations and masks do not depend on the layer.
    for name, one in rates.items():
        visibility = replace(seen, window=KINDS[name].window(c))
        turned = None if one is None else one.rotation(positions_BT, lengths_BT)
        kinds[name] = LayerKind(visibility, turned, growth)
    keys_values, visibility = _of_memory(memory, positions_BT, segments_BT)
    # For losses of layers, such as the balance of experts, which padding must not sway.
    counted_BT = (segments_BT > 0).astype(jnp.float32)
    return LayerContext(kinds, counted_BT, bias, keys_values, visibility, key)


def _blocks(
    blocks_BT: jax.Array | None,
    spans_BT2: jax.Array | None,
    positions_BT: jax.Array,
    segments_BT: jax.Array,
) -> tuple[jax.Array, jax.Array] | None:
    """`Visibility.blocks` of tokens."""
    if spans_BT2 is not None:
        return spans_BT2[..., 0], spans_BT2[..., 1]
    return None if blocks_BT is None else spans(blocks_BT, positions_BT, segments_BT)


def _of_memory(
    memory: Memory | None, positions_BT: jax.Array, segments_BT: jax.Array
) -> tuple[tuple[jax.Array, jax.Array] | None, Visibility | None]:
    """(keys and values of an encoder's text, which of them each token sees); None twice without."""
    if memory is None:
        return None, None
    keys_values, inputs = memory
    # Segment i of the decoder's row sees segment i of the encoder's, all positions.
    keys = inputs["positions"], segments_BT, inputs["segments"]
    return keys_values, Visibility(positions_BT, *keys, causal=False)


def _query_scale(c: ModelConfig, positions_BT: jax.Array) -> jax.Array:
    """The factors [B, T, 1, 1] of queries that `query_growth` says, float32."""
    times_BT = (positions_BT // int(c.rope_scaling.original_length)).astype(jnp.float32)
    return (1 + c.query_growth * jnp.log1p(times_BT))[:, :, None, None]


def _lengths(
    positions_BT: jax.Array, segments_BT: jax.Array | None, lengths_B: jax.Array | None
) -> jax.Array:
    """The length [B, T] of the document that each token is of: its last position plus 1. Segments
    of None say that rows are documents, `lengths_B` how long these are."""
    if lengths_B is not None:
        return jnp.broadcast_to(lengths_B[:, None], positions_BT.shape)
    positions_BS = gather_axis(positions_BT, axis=1)
    if segments_BT is None:
        last_B1 = jnp.max(positions_BS, axis=1, keepdims=True)
        return jnp.broadcast_to(last_B1 + 1, positions_BT.shape)
    # Each token against all of its row: T x T comparisons that XLA reduces as it makes them.
    same_BTS = segments_BT[:, :, None] == gather_axis(segments_BT, axis=1)[:, None, :]
    return jnp.max(jnp.where(same_BTS, positions_BS[:, None, :], -1), axis=2) + 1


def row_lengths(batch: Mapping[str, jax.Array], cached_BS: jax.Array) -> jax.Array:
    """How long [B] the texts in a cache are, by the positions [B, S] in its slots. A batch that is
    a part of a text may say in "lengths" [B] how long it is in all."""
    # Padding enters no cache, and an empty slot has position 0.
    lengths_B = jnp.max(cached_BS, axis=1) + 1
    return jnp.maximum(lengths_B, batch["lengths"]) if "lengths" in batch else lengths_B
