"""The inputs of a stack's layers beside states and parameters: visibility, rotation, dropout key.

Layers of one kind share them. Models such as Gemma 2 have two kinds: local layers, which see a
window, and global ones, which see the whole text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from research.models.config import ModelConfig
from research.ops.attention import Visibility
from research.ops.rope import frequencies, rotation

# What a decoder reads of an encoder: keys and values [L, B, S, K, H] for the cross-attention of its
# layers, and the batch fields of the encoder's text.
Memory = tuple[tuple[jax.Array, jax.Array], Mapping[str, jax.Array]]
LOCAL, GLOBAL = 0, 1  # kinds of layers where `global_every` sets some apart


@partial(jax.tree_util.register_dataclass, data_fields=["visibility", "rotation"], meta_fields=[])
@dataclass(frozen=True)
class LayerKind:
    """How layers of one kind attend: which key a query sees, and the rotation (cos, sin) of queries
    and keys, None without rotary positions."""

    visibility: Visibility
    rotation: tuple[jax.Array, jax.Array] | None = None


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["kinds", "counted_BT", "bias_BNTS", "memory_LBSKH", "memory_visibility", "key"],
    meta_fields=[],
)
@dataclass(frozen=True)
class LayerContext:
    """The inputs that `stack.run` gives to every layer beside its parameters and states.

    kinds              a `LayerKind` for each kind of layer, in the numbering of `layer_pattern`
    counted_BT         1 for tokens, 0 for padding, float32
    bias_BNTS          added to the scores of self-attention (relative positions of T5)
    memory_LBSKH       keys and values of all layers' cross-attention, from the encoder's states
    memory_visibility  which of those keys a query sees
    key                random key of dropout, None for no dropout
    """

    kinds: tuple[LayerKind, ...]
    counted_BT: jax.Array
    bias_BNTS: jax.Array | None = None
    memory_LBSKH: tuple[jax.Array, jax.Array] | None = None
    memory_visibility: Visibility | None = None
    key: jax.Array | None = None

    def dropout_keys(self, index: jax.Array | int) -> list:
        """A key for each branch of a layer; None without dropout."""
        if self.key is None:
            return [None] * 3
        return list(jax.random.split(jax.random.fold_in(self.key, index), 3))


def layer_pattern(c: ModelConfig) -> tuple[int, ...]:
    """One period of the kinds of layers, repeated from the first layer to the last: (LOCAL,) where
    all layers are alike, (LOCAL, GLOBAL) for Gemma 2."""
    if not c.global_every:
        return (LOCAL,)
    return (LOCAL,) * (c.global_every - 1) + (GLOBAL,)


def layer_windows(c: ModelConfig) -> list[int]:
    """The window of each layer, 0 for those that see the whole text."""
    return [0 if layer_kind(c, index) == GLOBAL else c.window for index in range(c.layers)]


def layer_kind(c: ModelConfig, index: int) -> int:
    """The kind of the layer with this number."""
    pattern = layer_pattern(c)
    return pattern[index % len(pattern)]


def make_context(
    c: ModelConfig,
    positions_BT: jax.Array,
    segments_BT: jax.Array,
    *,
    causal: bool,
    packed: bool = True,
    bias_BNTS: jax.Array | None = None,
    memory: Memory | None = None,
    key: jax.Array | None = None,
) -> LayerContext:
    """The context of a stack for tokens [B, T] that attend to each other; over a cache, which puts
    in its own keys, also to earlier ones. `packed` is that of `Visibility`, `memory` the encoder's
    for a decoder that has one."""
    kinds = _kinds(c, positions_BT, segments_BT, causal=causal, packed=packed)
    keys_values, visibility = None, None
    # Cross-attention: segment i of the decoder's row sees segment i of the encoder's, all
    # positions.
    if memory is not None:
        keys_values, inputs = memory
        of_memory = inputs["positions"], segments_BT, inputs["segments"]
        visibility = Visibility(positions_BT, *of_memory, causal=False)
    counted_BT = (segments_BT > 0).astype(jnp.float32)
    return LayerContext(kinds, counted_BT, bias_BNTS, keys_values, visibility, key)


def _kinds(
    c: ModelConfig,
    positions_BT: jax.Array,
    segments_BT: jax.Array,
    *,
    causal: bool,
    packed: bool,
) -> tuple[LayerKind, ...]:
    """The `LayerKind`s of a model, in the numbering of `layer_pattern`."""

    def kind(window: int, rates) -> LayerKind:
        visibility = Visibility(
            *(positions_BT, positions_BT, segments_BT, segments_BT), causal, window, packed=packed
        )
        return LayerKind(visibility, None if rates is None else rotation(positions_BT, rates))

    rates = local_rates = None
    if c.position == "rope":
        rates = frequencies(c.head_size, c.rope_theta, c.rope_scaling)
        # Text that local layers see is never longer than their window: no scaling for them.
        local_rates = frequencies(c.head_size, c.local_rope_theta) if c.local_rope_theta else rates
    if not c.global_every:
        return (kind(c.window, rates),)
    return kind(c.window, local_rates), kind(0, rates)
