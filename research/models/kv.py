"""The protocol of key-value caches, which keep the keys and values of earlier tokens.

A cache is a pytree, passed in and out. `stack.run` calls `enter` once for the tokens of a call and
`attend` once in every layer, and knows nothing else of it: keys and values may lie in one array for
all layers, in one for each, or in pages that rows share, and a kernel may read them where they lie.
"""

from typing import Protocol, Self

import jax

from research.ops.attention import Bias, Visibility

# Keys and values [n, K, H] in front of every row's own, see `research.models.adapters`.
Prefix = tuple[jax.Array, jax.Array]


class KVCache(Protocol):
    """Keys and values of the tokens so far, for every layer of a stack.

    Letters: B batch, T tokens of a call, S slots, N query heads, K key heads, H head size. A token
    is known by its position and its segment (0: padding), so attention over a cache is attention
    over keys like any other, and its rules are those of `research.ops.attention.Visibility`.

    Laws, for any tokens in any chunks, tested over all implementers in tests/models/test_kv.py:

    - Decoding is prefilling: tokens fed one at a time get the states that they get fed at once, and
      those that they get without a cache, but for float order.
    - Padding (segment 0) claims no slot and changes nothing of what others see, whatever its keys.
    - Rows share nothing: what is entered in one row changes no other row.
    - In layers with a window w a query sees itself and the w - 1 tokens before it. A cache may
      forget what no later query can see, and must not show what it has overwritten.
    - Each call enters at most as many tokens as the cache was made for. Their positions rise.
    """

    # Split in two since slots are the same in all layers, and keys are not.
    def enter(self, positions_BT: jax.Array, segments_BT: jax.Array) -> Self:
        """The cache with slots claimed for these tokens in every layer, their keys to come."""
        ...

    def key_positions(self) -> jax.Array:
        """Positions [B, S] of the keys that `attend` meets in its order, for relative biases."""
        ...

    def attend(
        self,
        layer: jax.Array | int,
        q_BTNH: jax.Array,
        k_BTKH: jax.Array,
        v_BTKH: jax.Array,
        visibility: Visibility,
        *,
        scale: float,
        softcap: float = 0.0,
        bias: Bias = None,
        sinks_N: jax.Array | None = None,
        prefix: Prefix | None = None,
        implementation: str = "auto",
    ) -> tuple[jax.Array, Self]:
        """Attention [B, T, N, H] of the entered tokens over all tokens so far, themselves
        included, and the cache with their keys and values in this layer.

        `visibility` has the entered tokens as queries and the rules of the layer. The cache puts
        its own keys in. The other arguments are those of `research.ops.attention.attend`.
        """
        ...
