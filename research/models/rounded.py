"""A paged cache whose keys and values have 8 or 4 bits (arXiv:2402.02750).

A page can be rounded only once it is full. Until then its tokens are kept as they are, in `recent`
arrays that have room for two pages of each text that runs: a page may be filled by tokens that were
guessed, and then be filled again.

A query sees the tokens of its own page as they are and those of earlier pages rounded; those of
later pages, which tokens of a block see as it is read at once, as they are too. What it sees is
thus decided by its position, and not by the steps in which the text was read, by other texts, or by
whose pages it shares.

Letters: as in `research.models.paged`, and r texts of a part of a call, t tokens of each, g pages
that these are in, W = g s slots of those pages.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self

import jax
import jax.numpy as jnp

from research.models.adapters import with_prefix
from research.models.codes import BITS, Codes, rounded
from research.models.kv import Prefix
from research.models.paged import PagedCache, Pool, blocks_of, by_text, flat, tokens_of
from research.ops import attention
from research.ops.attention import Bias, Visibility
from research.parallel.axes import RULES, AxisRules, constrain

_TOKENS, _CHANNELS = -3, -1  # the axes of [..., s, K, H] along which keys and values are rounded
_NEVER = -1e30  # a score that is no part of a softmax


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["keys_pool", "values_pool", "table_RC", "recent_keys", "recent_values", "slot_R"],
    meta_fields=["singles", "first", "each"],
)
@dataclass(frozen=True)
class RoundedCache(PagedCache):
    """A `PagedCache` whose pools are `Codes` of [P, s, K, H], and the texts' last tokens as they
    are.

    recent_keys  [slots, 2, s, K, H] of each layer, by the number of a token's page modulo 2;
                 `recent_values` likewise, None where values are the keys
    slot_R       the slot of each text, as many as there are slots for none

    A text's tokens in a call come behind those that it has, of which the last may be thrown away;
    `each` is at most s. ValueError for relative biases.
    """

    HEADS: ClassVar[int] = -2

    recent_keys: Pool = ()
    recent_values: Pool | None = None
    slot_R: jax.Array | None = None

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        return self.keys_pool[0].codes.shape[1]

    def _attend(
        self,
        layer: int,
        q_BTNH: jax.Array,
        k_BTKH: jax.Array,
        v_BTKH: jax.Array,
        visibility: Visibility,
        *,
        bias: Bias = None,
        prefix: Prefix | None = None,
        **scoring,
    ) -> tuple[jax.Array, Self]:
        """See `PagedCache.attend`."""
        if bias is not None:
            raise ValueError(
                "a model with relative biases has no rounded cache; leave its keys and values in "
                "the type of computation"
            )
        cache, outs = self, []
        q_MNH, (positions_M, segments_M) = flat(q_BTNH), tokens_of(visibility)
        for tokens, texts in self._parts(len(positions_M)):
            rows = partial(by_text, rows=self.table_RC[texts].shape[0])
            part = _Part(
                self.table_RC[texts],
                self.slot_R[texts],
                rows(positions_M[tokens]) - self.first,
                rows(segments_M[tokens]),
                self.page_size,
            )
            cache, k_rWKH, v_rWKH = cache._enter_part(
                layer, part, rows(flat(k_BTKH)[tokens]), rows(flat(v_BTKH)[tokens])
            )
            k_rSKH, v_rSKH = cache._read(layer, part.table_rC)
            join = lambda old, new: jnp.concatenate([old, new], axis=1).astype(q_BTNH.dtype)
            keys, values = join(k_rSKH, k_rWKH), join(v_rSKH, v_rWKH)
            places_rS = part.key_places()
            seen = Visibility(
                part.places_rt + self.first,
                places_rS + self.first,
                part.segments_rt,
                jnp.ones_like(places_rS),
                visibility.causal,
                visibility.window,
                blocks=blocks_of(visibility, lambda x_BT: rows(x_BT.reshape(-1)[tokens])),
            )
            keys, values, seen = with_prefix(prefix, keys, values, seen)
            hidden = part.hidden(q_BTNH.shape[2], keys.shape[1])
            q_rtNH = rows(q_MNH[tokens])
            outs.append(flat(attention.attend(q_rtNH, keys, values, seen, bias=hidden, **scoring)))
        return jnp.concatenate(outs).reshape(*q_BTNH.shape[:3], -1), cache

    def of(
        self,
        table_RC: jax.Array,
        slot_R: jax.Array,
        singles: int = 0,
        first: int = 0,
        each: int = 1,
    ) -> Self:
        """See `PagedCache.of`."""
        return replace(super().of(table_RC, slot_R, singles, first, each), slot_R=slot_R)

    def _enter_part(
        self, layer: int, part: "_Part", k_rtKH: jax.Array, v_rtKH: jax.Array
    ) -> tuple[Self, jax.Array, jax.Array]:
        """(the cache with a layer's new keys and values, these and those before them in the pages
        that they are in, [r, W, K, H] each)."""
        recent, k_rWKH = part.enter(self.recent_keys[layer], k_rtKH)
        keys = part.put(self.keys_pool[layer], k_rWKH, _TOKENS)
        cache = replace(
            self,
            recent_keys=_with(self.recent_keys, layer, recent),
            keys_pool=_with(self.keys_pool, layer, keys),
        )
        if self.values_pool is None:
            return cache, k_rWKH, k_rWKH
        recent, v_rWKH = part.enter(self.recent_values[layer], v_rtKH)
        values = part.put(self.values_pool[layer], v_rWKH, _CHANNELS)
        cache = replace(
            cache,
            recent_values=_with(self.recent_values, layer, recent),
            values_pool=_with(self.values_pool, layer, values),
        )
        return cache, k_rWKH, v_rWKH

    def _read(self, layer: int, table_rC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The rounded keys and values [r, S, K, H] of a layer for r texts."""

        def _dense(codes: Codes) -> jax.Array:
            found = jax.tree.map(lambda x: x.at[table_rC].get(mode="promise_in_bounds"), codes)
            x_rCsKH = found.dense()
            return x_rCsKH.reshape(len(table_rC), -1, *x_rCsKH.shape[3:])

        k_rSKH = _dense(self.keys_pool[layer])
        return k_rSKH, k_rSKH if self.values_pool is None else _dense(self.values_pool[layer])


@dataclass(frozen=True)
class _Part:
    """The texts of a call that have equally many tokens in it: pages and slot of each, and the
    place in its text and the segment of each token."""

    table_rC: jax.Array
    slot_r: jax.Array
    places_rt: jax.Array
    segments_rt: jax.Array
    page_size: int

    @property
    def start_r(self) -> jax.Array:
        """The first page that has tokens of this call."""
        return self.places_rt[:, 0] // self.page_size

    @property
    def pages(self) -> int:
        """Pages that have tokens of this call, at most."""
        return -(-(self.page_size - 1 + self.places_rt.shape[1]) // self.page_size)

    @property
    def end_r1(self) -> jax.Array:
        """The place of the last token of this call, -1 for none."""
        return jnp.max(self._there(-1), axis=1, keepdims=True)

    def key_places(self) -> jax.Array:
        """Places [r, S + W] of the keys: all of a text's pages, then those of this call."""
        S, W = (count * self.page_size for count in (self.table_rC.shape[1], self.pages))
        old_rS = jnp.broadcast_to(jnp.arange(S)[None], (len(self.table_rC), S))
        new_rW = self.start_r[:, None] * self.page_size + jnp.arange(W)[None]
        return jnp.concatenate([old_rS, new_rW], axis=1)

    def hidden(self, heads: int, keys: int) -> jax.Array:
        """What is added to the scores, [r, N, t, n + S + W], so that a query sees each token once:
        in its own page and later ones as it is, before them rounded. The n tokens of a prefix come
        first."""
        of_key_r1S = (self.key_places() // self.page_size)[:, None]
        of_query_rt1 = (self.places_rt // self.page_size)[:, :, None]
        S = self.table_rC.shape[1] * self.page_size
        as_it_is_11S = (jnp.arange(of_key_r1S.shape[2]) >= S)[None, None]
        seen_rtS = jnp.where(as_it_is_11S, of_key_r1S >= of_query_rt1, of_key_r1S < of_query_rt1)
        bias_rtS = jnp.where(seen_rtS, 0.0, _NEVER)
        bias_rtS = jnp.pad(bias_rtS, ((0, 0), (0, 0), (keys - bias_rtS.shape[2], 0)))
        return jnp.broadcast_to(bias_rtS[:, None], (len(bias_rtS), heads, *bias_rtS.shape[1:]))

    def enter(self, recent_R2sKH: jax.Array, x_rtKH: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(`recent` with new tokens, these and those before them in their pages, [r, W, K, H])."""
        size, slots = self.page_size, len(recent_R2sKH)
        x_rtKH = x_rtKH.astype(recent_R2sKH.dtype)
        begun_rsKH = recent_R2sKH.at[self.slot_r, self.start_r % 2].get(mode="clip")
        more = jnp.zeros((len(x_rtKH), (self.pages - 1) * size, *x_rtKH.shape[2:]), x_rtKH.dtype)
        row_r1 = jnp.arange(len(x_rtKH))[:, None]
        # Padding goes out of range, which "drop" leaves out.
        at_rt = self._there(self.pages * size + self.start_r[:, None] * size)
        at_rt -= self.start_r[:, None] * size
        whole_rWKH = jnp.concatenate([begun_rsKH, more], axis=1)
        whole_rWKH = whole_rWKH.at[row_r1, at_rt].set(x_rtKH, mode="drop")
        # Of two tokens with one place here the later one is kept.
        last_rt = (self.segments_rt > 0) & (self.places_rt > self.end_r1 - 2 * size)
        slot_rt = jnp.where(last_rt, self.slot_r[:, None], slots)
        at = slot_rt, self.places_rt // size % 2, self.places_rt % size
        return recent_R2sKH.at[at].set(x_rtKH, mode="drop"), whole_rWKH

    def put(self, pool: Codes, whole_rWKH: jax.Array, axis: int) -> Codes:
        """The pool with the pages that this call has filled, rounded along an axis of [s, K, H]."""
        r, pages = len(whole_rWKH), self.pages
        full_rgsKH = whole_rWKH.reshape(r, pages, self.page_size, *whole_rWKH.shape[2:])
        number_rg = self.start_r[:, None] + jnp.arange(pages)[None]
        page_rg = jnp.take_along_axis(self.table_rC, number_rg, axis=1, mode="clip")
        full_rg = (number_rg + 1) * self.page_size - 1 <= self.end_r1
        at_rg = jnp.where(full_rg, page_rg, len(pool.codes))
        new = rounded(full_rgsKH, axis, pool.bits)
        return jax.tree.map(lambda old, new: old.at[at_rg].set(new, mode="drop"), pool, new)

    def _there(self, otherwise: jax.Array | int) -> jax.Array:
        """The places of tokens, and something else for padding."""
        return jnp.where(self.segments_rt > 0, self.places_rt, otherwise)


def make_rounded(
    layers: int,
    pages: int,
    page_size: int,
    kv_heads: int,
    head_size: int,
    dtype: jnp.dtype,
    *,
    slots: int,
    bits: int,
    values: bool = True,
    rules: AxisRules = RULES,
) -> RoundedCache:
    """Empty pages for every layer, and `slots` for the last tokens of texts. ValueError for a
    number of bits that is none of BITS, and an odd head in 4 bits."""
    if bits not in BITS or (bits == 4 and head_size % 2):
        raise ValueError(
            f"a cache in {bits} bits of heads of {head_size}; choose 8, or 4 for an even head"
        )
    shape = (pages, page_size, kv_heads)
    codes = lambda axis: rounded(jnp.zeros((*shape, head_size), dtype), axis, bits)
    recent = lambda: jnp.zeros((slots, 2, page_size, kv_heads, head_size), dtype)
    placed = partial(_by_kv_heads, rules=rules)
    per_layer = lambda make: tuple(jax.tree.map(placed, make()) for _ in range(layers))
    return RoundedCache(
        per_layer(lambda: codes(_TOKENS)),
        per_layer(lambda: codes(_CHANNELS)) if values else None,
        jnp.zeros((0, 0), jnp.int32),
        recent_keys=per_layer(recent),
        recent_values=per_layer(recent) if values else None,
        slot_R=jnp.zeros(0, jnp.int32),
    )


def _by_kv_heads(x: jax.Array, rules: AxisRules) -> jax.Array:
    """An array [..., K, H] with its key heads split over devices."""
    return constrain(x, (*["position"] * (x.ndim - 2), "kv_heads", "head"), rules)


def _with(pool: tuple, layer: int, changed) -> tuple:
    """The arrays of all layers with that of one replaced."""
    return (*pool[:layer], changed, *pool[layer + 1 :])
