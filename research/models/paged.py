"""A key-value cache in pages that texts share, for batches in which texts come and go.

Keys and values lie in a pool of P pages of s tokens each, one pool for every layer. Whoever owns
the pool says in a table which pages a text has: key j of a text is in slot j mod s of the page
numbered j div s in its row of the table. Texts with equal beginnings may have the same pages.

A call may hold several texts in one flat row. Its tokens are first one, or as many as are guessed
ahead, of each of several texts, which go on, and then equally many of each of the others, which
are being read. What does not mix
tokens, all but attention, sees a row of tokens like any other.

Letters: B batch, T tokens of a call, P pages, s slots of a page, R texts, C pages of a text, S key
time, N query heads, K key heads, H head size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self

import jax
import jax.numpy as jnp

from research.models.adapters import with_prefix
from research.models.kv import KVCache, Prefix
from research.models.split_heads import by_head
from research.ops import attention
from research.ops.attention import Bias, Visibility
from research.ops.distance import DistanceBias
from research.parallel.axes import RULES, AxisRules, constrain
from research.parallel.placement import unsharded

# [P, K, s, H] of each layer: what a head has of a page lies together, as products want it. Timed on
# a CPU alone.
Pool = tuple[jax.Array, ...]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["keys_pool", "values_pool", "table_RC"],
    meta_fields=["singles", "first", "each"],
)
@dataclass(frozen=True)
class PagedCache(KVCache):
    """Pages of keys and values, and which of them the texts of a call have.

    keys_pool    the pool of each layer; a tuple, so that a layer's update is in place. Layers are
                 numbered by Python integers (`Execution(unroll=0)`)
    values_pool  likewise; None where values are the keys (`research.models.latent`)
    table_RC     pages of each text; entries behind a text's last page may be any page
    singles      of the B T tokens of a call the first `singles` x `each` are `each` of as many
                 texts, and the others are equally many of each of the remaining R - `singles`
    first        the position of every text's first token: the number of virtual tokens before it
    each         see `singles`
    """

    HEADS: ClassVar[int] = -3  # the axis K of the arrays of pools

    keys_pool: Pool
    values_pool: Pool | None
    table_RC: jax.Array
    singles: int = 0
    first: int = 0
    each: int = 1

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        return self.keys_pool[0].shape[2]

    def of(
        self,
        table_RC: jax.Array,
        slot_R: jax.Array,
        singles: int = 0,
        first: int = 0,
        each: int = 1,
    ) -> Self:
        """The cache in a call of some texts: their pages, the numbers of the places that each has
        beside them (`research.models.rounded`), and `singles`, `first` and `each`."""
        return replace(self, table_RC=table_RC, singles=singles, first=first, each=each)

    def bare(self) -> Self:
        """The cache between calls, of no texts."""
        nothing = jnp.zeros((0, 0), jnp.int32)
        return self.of(nothing, nothing.reshape(-1))

    def enter(self, positions_BT: jax.Array, segments_BT: jax.Array) -> Self:
        """See `KVCache.enter`; the table has claimed the slots already."""
        return self

    def key_positions(self) -> jax.Array:
        """Positions [1, S] of a text's keys, which are the same for all texts."""
        return (self.first + jnp.arange(self._length()))[None]

    def attend(
        self,
        layer: jax.Array | int,
        q_BTNH: jax.Array,
        k_BTKH: jax.Array,
        v_BTKH: jax.Array,
        visibility: Visibility,
        *,
        bias: Bias = None,
        prefix: Prefix | None = None,
        **scoring,
    ) -> tuple[jax.Array, Self]:
        """See `KVCache.attend`; `layer` is a Python integer. ValueError for a bias on a mesh."""
        if unsharded():
            return self._attend(
                layer, q_BTNH, k_BTKH, v_BTKH, visibility, bias=bias, prefix=prefix, **scoring
            )
        if bias is not None:
            raise ValueError(
                "pages of keys on a mesh have no relative biases; leave the mesh, or use "
                "research.infer.decode.generate"
            )
        sinks_N = scoring.pop("sinks_N", None)

        def _on_a_device(cache, q_BTNH, k_BTKH, v_BTKH, visibility, prefix, sinks_N):
            how = {"prefix": prefix, "sinks_N": sinks_N, **scoring}
            return cache._attend(layer, q_BTNH, k_BTKH, v_BTKH, visibility, **how)

        pool = jax.tree.leaves(self.keys_pool[layer])[0]
        arrays = q_BTNH, k_BTKH, v_BTKH, visibility, prefix, sinks_N
        return by_head(_on_a_device, self, pool, self.HEADS, *arrays)

    def _attend(
        self,
        layer: jax.Array | int,
        q_BTNH: jax.Array,
        k_BTKH: jax.Array,
        v_BTKH: jax.Array,
        visibility: Visibility,
        *,
        bias: Bias = None,
        prefix: Prefix | None = None,
        **scoring,
    ) -> tuple[jax.Array, Self]:
        """`attend` on one device, or on one device's heads."""
        # Written before reading: the tokens of a chunk attend to each other through the cache too.
        cache = self._write(layer, k_BTKH, v_BTKH, visibility)
        q_MNH, outs = flat(q_BTNH), []
        for tokens, texts in self._parts(len(q_MNH)):
            table_rC = self.table_RC[texts]
            rows = partial(by_text, rows=table_rC.shape[0])
            k_rSKH, v_rSKH = (x.astype(q_BTNH.dtype) for x in cache._read(layer, table_rC))
            seen = self._visibility(visibility, lambda x_BT: rows(x_BT.reshape(-1)[tokens]))
            k_rSKH, v_rSKH, seen = with_prefix(prefix, k_rSKH, v_rSKH, seen)
            offsets = _offsets(bias, q_BTNH.shape, tokens, rows)
            out_rtNH = attention.attend(
                rows(q_MNH[tokens]), k_rSKH, v_rSKH, seen, bias=offsets, **scoring
            )
            outs.append(flat(out_rtNH))
        return jnp.concatenate(outs).reshape(*q_BTNH.shape[:3], -1), cache

    def _length(self) -> int:
        """S: the most keys that a text's row of the table has room for."""
        return self.table_RC.shape[1] * self.page_size

    def _parts(self, tokens: int) -> Iterator[tuple[slice, slice]]:
        """(tokens of the flat row, rows of the table) of the texts that go on, and of those that
        are being read."""
        texts, alone = self.table_RC.shape[0], self.singles
        if alone:
            yield slice(0, alone * self.each), slice(0, alone)
        if texts > alone:
            yield slice(alone * self.each, tokens), slice(alone, texts)

    def _texts(self, tokens: int) -> jax.Array:
        """The row of the table of each token of a call, int [tokens]."""
        alone, others = self.singles, self.table_RC.shape[0] - self.singles
        read = (tokens - alone * self.each) // max(others, 1)
        going_on, being_read = jnp.arange(alone), alone + jnp.arange(others)
        return jnp.concatenate([jnp.repeat(going_on, self.each), jnp.repeat(being_read, read)])

    def _write(self, layer, k_BTKH: jax.Array, v_BTKH: jax.Array, visibility: Visibility) -> Self:
        """The cache with a layer's new keys and values in their slots."""
        positions_M, segments_M = tokens_of(visibility)
        pages, size = self.keys_pool[layer].shape[0], self.page_size
        place_M = positions_M - self.first
        page_M = self.table_RC[self._texts(len(place_M)), place_M // size]
        # Padding goes to a page out of range, which "drop" leaves out.
        at = jnp.where(segments_M > 0, page_M, pages), slice(None), place_M % size

        def _put(pool: Pool, new_BTKH: jax.Array) -> Pool:
            changed = pool[layer].at[at].set(flat(new_BTKH).astype(pool[layer].dtype), mode="drop")
            # The other arrays are handed on as they are, so XLA can alias each with its input.
            return (*pool[:layer], changed, *pool[layer + 1 :])

        keys = _put(self.keys_pool, k_BTKH)
        values = None if self.values_pool is None else _put(self.values_pool, v_BTKH)
        return replace(self, keys_pool=keys, values_pool=values)

    def _read(self, layer, table_rC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values [r, S, K, H] of a layer for r texts, in the order of their positions."""

        def _gathered(pool_PKsH: jax.Array) -> jax.Array:
            P, K, s, H = pool_PKsH.shape
            r, C = table_rC.shape
            at_rKC = table_rC[:, None, :] * K + jnp.arange(K)[None, :, None]
            # A head's part of a page is a row of a matrix here: copying rows is what XLA's gather
            # does fastest, and they come in the order that the products of attention read.
            rows = pool_PKsH.reshape(P * K, s * H).at[at_rKC.reshape(-1)]
            found = rows.get(mode="promise_in_bounds")
            return jnp.swapaxes(found.reshape(r, K, C * s, H), 1, 2)

        k_rSKH = _gathered(self.keys_pool[layer])
        return k_rSKH, k_rSKH if self.values_pool is None else _gathered(self.values_pool[layer])

    def _visibility(
        self, rule: Visibility, by_text: Callable[[jax.Array], jax.Array]
    ) -> Visibility:
        """Which of its text's keys each query sees, where `by_text` gives the numbers [r, t] of
        some texts' tokens of those of a call. A slot behind the text's end has a position behind
        every query's and every block's, so what lies in it never matters."""
        positions_rt, segments_rt = by_text(rule.q_positions_BT), by_text(rule.q_segments_BT)
        keys_rS = jnp.broadcast_to(self.key_positions(), (len(positions_rt), self._length()))
        return Visibility(
            positions_rt,
            keys_rS,
            segments_rt,
            jnp.ones_like(keys_rS),
            rule.causal,
            rule.window,
            blocks=blocks_of(rule, by_text),
        )


def make_pool(
    layers: int,
    pages: int,
    page_size: int,
    kv_heads: int,
    head_size: int,
    dtype: jnp.dtype,
    rules: AxisRules = RULES,
) -> Pool:
    """Empty pages for every layer, placed on the mesh by `rules`."""
    axes = "position", "kv_heads", "position", "head"
    make = lambda: jnp.zeros((pages, kv_heads, page_size, head_size), dtype)
    return tuple(constrain(make(), axes, rules) for _ in range(layers))


def flat(x_BTNH: jax.Array) -> jax.Array:
    """[B T, N, H] of [B, T, N, H]."""
    return x_BTNH.reshape(-1, *x_BTNH.shape[2:])


def tokens_of(visibility: Visibility) -> tuple[jax.Array, jax.Array]:
    """The positions and the segments [B T] of a call's tokens."""
    return visibility.q_positions_BT.reshape(-1), visibility.q_segments_BT.reshape(-1)


def blocks_of(
    rule: Visibility, by_text: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array] | None:
    """The first and the last positions [r, t] of the blocks of some texts' tokens, see
    `PagedCache._visibility`; None for no blocks."""
    if rule.blocks is None:
        return None
    first_BT, last_BT = rule.blocks
    return by_text(first_BT), by_text(last_BT)


def by_text(x: jax.Array, rows: int) -> jax.Array:
    """Tokens [r t, ...] as [r, t, ...] for this number of texts r."""
    return x.reshape(rows, -1, *x.shape[1:])


def _offsets(bias: Bias, shape: tuple[int, ...], tokens: slice, by_text) -> jax.Array | None:
    """What is added to the scores of some tokens, [r, N, t, S], of that of a call [B or 1, N, T,
    S]."""
    if bias is None:
        return None
    bias_BNTS = bias.dense() if isinstance(bias, DistanceBias) else bias
    B, T, N, _ = shape
    bias_BTNS = jnp.moveaxis(jnp.broadcast_to(bias_BNTS, (B, N, T, bias_BNTS.shape[3])), 1, 2)
    return jnp.moveaxis(by_text(flat(bias_BTNS)[tokens]), 1, 2)
