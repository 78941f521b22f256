"""The inputs of a stack's layers beside states and parameters: visibility, rotation, dropout key.

Layers of one kind share them. Models such as Gemma 2 have two kinds: local layers, which see a
window, and global ones, which see the whole text.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from research.models.config import ModelConfig
from research.ops.attention import Bias, Visibility
from research.ops.rope import frequencies, rotation

# What a decoder reads of an encoder: keys and values [L, B, S, K, H] for the cross-attention of its
# layers, and the batch fields of the encoder's text.
Memory = tuple[tuple[jax.Array, jax.Array], Mapping[str, jax.Array]]


@partial(jax.tree_util.register_dataclass, data_fields=["visibility", "rotation"], meta_fields=[])
@dataclass(frozen=True)
class LayerKind:
    """How layers of one kind attend: which key a query sees, and the rotation (cos, sin) of queries
    and keys, None without rotary positions."""

    visibility: Visibility
    rotation: tuple[jax.Array, jax.Array] | None = None


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


@dataclass(frozen=True)
class KindRule:
    """A row of `KINDS`: which layers of a model are of a kind, and how they attend.

    every   every(c) is n where layers n - 1, 2n - 1, ... are of the kind, 0 where none is
    window  window(c) is how many tokens a query sees at most, itself among them; 0 for all
    rates   rates(c) are the frequencies of the rotation, None for layers without one
    """

    every: Callable[[ModelConfig], int]
    window: Callable[[ModelConfig], int]
    rates: Callable[[ModelConfig], np.ndarray | None]


def _rates(c: ModelConfig) -> np.ndarray | None:
    return frequencies(c.head_size, c.rope_theta, c.rope_scaling) if c.position == "rope" else None


def _local_rates(c: ModelConfig) -> np.ndarray | None:
    # Text that local layers see is never longer than their window: no scaling for them.
    return frequencies(c.head_size, c.local_rope_theta) if c.local_rope_theta else _rates(c)


# Kinds of layers by name; all have the same parameters. The last row that claims a layer has it.
KINDS: dict[str, KindRule] = {
    "local": KindRule(lambda c: 1, lambda c: c.window, _local_rates),
    "global": KindRule(lambda c: c.global_every, lambda c: 0, _rates),
}


def layer_pattern(c: ModelConfig) -> tuple[str, ...]:
    """One period of the kinds of layers, repeated from the first layer to the last: ("local",)
    where all layers are alike, ("local", "global") for Gemma 2."""
    # Kinds that this model does not have (0) would make the common multiple 0.
    every = {name: rule.every(c) for name, rule in KINDS.items() if rule.every(c)}
    pattern = []
    # Layers n - 1, 2n - 1, ... of each kind repeat together after the least common multiple.
    for number in range(1, math.lcm(*every.values()) + 1):
        # Of several kinds that claim a layer the last row wins, as the table says.
        pattern.append([name for name, n in every.items() if number % n == 0][-1])
    return tuple(pattern)


def layer_windows(c: ModelConfig) -> list[int]:
    """The window of each layer, 0 for those that see the whole text."""
    return [KINDS[layer_kind(c, index)].window(c) for index in range(c.layers)]


def longest_window(c: ModelConfig) -> int:
    """The longest window of any kind of layer, 0 where one sees the whole text."""
    windows = [KINDS[name].window(c) for name in layer_pattern(c)]
    # One layer that sees all keeps every token in the cache, whatever the others' windows.
    return 0 if 0 in windows else max(windows)


def layer_kind(c: ModelConfig, index: int) -> str:
    """The kind of the layer with this number."""
    pattern = layer_pattern(c)
    return pattern[index % len(pattern)]


def make_context(
    c: ModelConfig,
    positions_BT: jax.Array,
    segments_BT: jax.Array | None,
    *,
    causal: bool,
    packed: bool = True,
    documents: int = 0,
    bias: Bias = None,
    memory: Memory | None = None,
    key: jax.Array | None = None,
) -> LayerContext:
    """The context of a stack for tokens [B, T] that attend to each other; over a cache, which puts
    in its own keys, also to earlier ones. `packed` and `documents` are those of `Visibility`,
    `memory` the encoder's for a decoder that has one. Segments of None say that every row is one
    document without padding.
    """
    single = segments_BT is None
    segments_BT = jnp.ones_like(positions_BT) if segments_BT is None else segments_BT
    # Tokens are queries and keys alike; a cache replaces the keys by its own in `attend`.
    tokens = (positions_BT, positions_BT, segments_BT, segments_BT)
    kinds = {}
    # Once for each kind and not for each layer: rotations and masks do not depend on the layer.
    for name in dict.fromkeys(layer_pattern(c)):
        window = KINDS[name].window(c)
        visibility = Visibility(
            *tokens, causal, window, packed=packed, single=single, documents=documents
        )
        rates = KINDS[name].rates(c)
        kinds[name] = LayerKind(
            visibility, None if rates is None else rotation(positions_BT, rates)
        )
    keys_values, visibility = None, None
    # Cross-attention: segment i of the decoder's row sees segment i of the encoder's, all
    # positions.
    if memory is not None:
        keys_values, inputs = memory
        visibility = Visibility(
            positions_BT, inputs["positions"], segments_BT, inputs["segments"], causal=False
        )
    # For losses of layers, such as the balance of experts, which padding must not sway.
    counted_BT = (segments_BT > 0).astype(jnp.float32)
    return LayerContext(kinds, counted_BT, bias, keys_values, visibility, key)
