"""The laws of `research.models.kv.KVCache`, over every implementer."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.cache import LayeredCache, StackedCache
from research.models.config import Execution
from research.models.kv import KVCache
from research.models.model import Model
from research.models.paged import PagedCache, make_pool
from research.ops.attention import Visibility
from tests.families import FAMILIES
from tests.models.test_model import parameters

# What a type checker holds against the protocol.
_implementers: tuple[type[KVCache], ...] = (StackedCache, LayeredCache, PagedCache)


def paged(cache: StackedCache) -> PagedCache:
    """Pages for the texts of the empty cache, in no order, beside some that nobody has."""
    layers, rows, heads, _, size = cache.key_LBKSH.shape
    table_RC = jnp.array([[4, 1, 6], [2, 7, 3]])[:rows]
    make = partial(make_pool, layers, 8, CHUNK, heads, size, cache.key_LBKSH.dtype)
    return PagedCache(make(), None if cache.value_LBKSH is None else make(), table_RC)


# How each cache is made of an empty one of the model, and how a stack must run over it.
CACHES = {
    "stacked": (lambda cache: cache, Execution()),
    "layered": (StackedCache.layered, Execution(unroll=0)),
    "paged": (paged, Execution(unroll=0)),
}
# All positions alike, a window, grouped heads, local and global layers, latents of a first layer
# without experts and of others, a relative bias.
FAMILIES_HERE = ["gpt2", "mistral_7b", "gemma2_2b", "deepseek_v3", "t5_small"]
# Sums of the same float32 products in another order; states are of the order of 1.
TOLERANCE = 3e-5
LENGTH, CHUNK = 12, 4


@cache
def texts(padded: int = 0) -> dict[str, np.ndarray]:
    """Two texts, the second of them `padded` tokens shorter, and an encoder's."""
    rng = np.random.default_rng(0)
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (2, 1))
    segments = np.ones_like(positions)
    segments[1, LENGTH - padded :] = 0
    fields = {"positions": positions, "segments": segments}
    ids = rng.integers(0, 96, (2, 2, LENGTH), dtype=np.int32)
    encoder = {f"encoder_{name}": field for name, field in fields.items()}
    return {"inputs": ids[0], **fields, "encoder_inputs": ids[1], **encoder}


@partial(jax.jit, static_argnums=(0, 1, 3))
def decoded(name, kind, batch, chunk):
    """Last states of texts that are fed `chunk` tokens at a time."""
    make, execution = CACHES[kind]
    model, params = Model(FAMILIES[name], execution=execution), parameters(name)
    memory = model.encode(params, batch) if model.config.kind == "encoder_decoder" else None
    cache, states = make(model.make_cache(2, LENGTH, CHUNK)), []
    for first in range(0, LENGTH, chunk):
        fields = ("inputs", "positions", "segments")
        part = {field: batch[field][:, first : first + chunk] for field in fields}
        hidden_BTD, cache = model.decode(params, part, cache, memory)
        states.append(hidden_BTD)
    return jnp.concatenate(states, axis=1)


# Each is two programs: of pages, whose layers are unrolled, one family is the quick one.
_quick = {"gemma2_2b"}
_cases = [(name, kind) for name in FAMILIES_HERE for kind in CACHES]


@pytest.mark.parametrize(
    "name, kind",
    [
        pytest.param(
            *case, marks=[pytest.mark.slow] * (case[1] == "paged" and case[0] not in _quick)
        )
        for case in _cases
    ],
)
def test_decoding_is_prefilling_is_no_cache(name, kind):
    batch = texts()
    want, _ = jax.jit(Model(FAMILIES[name]).hidden)(parameters(name), batch)
    for chunk in (1, CHUNK):
        got = decoded(name, kind, batch, chunk)
        np.testing.assert_allclose(got, want, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["stacked", "layered"])
def test_a_cache_of_latents_keeps_one_latent_and_one_rotated_key_a_token(kind):
    c = FAMILIES["deepseek_v3"]
    cache = CACHES[kind][0](Model(c).make_cache(1, LENGTH, CHUNK))
    kept = sum(array.nbytes for array in jax.tree.leaves(cache))
    # In float32; beside them a position and a segment, for all layers.
    assert kept == LENGTH * 4 * (c.layers * (c.kv_latent + c.rotary_size) + 2)


@pytest.mark.parametrize("kind", CACHES)
def test_rows_share_nothing(kind):
    batch = texts()
    other = {**batch, "inputs": batch["inputs"].copy()}
    other["inputs"][1] = (other["inputs"][1] + 1) % 96
    got, changed = (decoded("mistral_7b", kind, b, CHUNK) for b in (batch, other))
    np.testing.assert_array_equal(got[0], changed[0])
    assert not np.allclose(got[1], changed[1])


@pytest.mark.parametrize("kind", CACHES)
def test_padding_claims_no_slot_whatever_its_keys(kind):
    # The last chunk of the second row is half padding, and its ids are of no account.
    batch = texts(padded=2)
    other = {**batch, "inputs": batch["inputs"].copy()}
    other["inputs"][1, -2:] = 5
    got, changed = (decoded("mistral_7b", kind, b, CHUNK) for b in (batch, other))
    np.testing.assert_array_equal(got[batch["segments"] > 0], changed[batch["segments"] > 0])
    want = decoded("mistral_7b", kind, texts(), CHUNK)
    np.testing.assert_array_equal(got[1, : LENGTH - 2], want[1, : LENGTH - 2])


@pytest.mark.parametrize("kind", CACHES)
def test_a_query_sees_its_window_and_no_slot_that_was_overwritten(kind):
    # Values that are positions, and scores that are all alike: attention is the mean of what is
    # seen. Slots for a window of 5 and chunks of 4 are fewer than the 12 tokens.
    window, head = 5, FAMILIES["mistral_7b"].head_size
    kv = CACHES[kind][0](Model(FAMILIES["mistral_7b"]).make_cache(2, LENGTH, CHUNK))
    for first in range(0, LENGTH, CHUNK):
        positions_BT = jnp.tile(jnp.arange(first, first + CHUNK, dtype=jnp.int32), (2, 1))
        ones_BT = jnp.ones_like(positions_BT)
        kv = kv.enter(positions_BT, ones_BT)
        seen = Visibility(positions_BT, positions_BT, ones_BT, ones_BT, True, window)
        v_BTKH = jnp.ones((2, CHUNK, 2, head)) * positions_BT[:, :, None, None]
        q_BTNH, k_BTKH = jnp.zeros((2, CHUNK, 4, head)), jnp.zeros_like(v_BTKH)
        out_BTNH, kv = kv.attend(1, q_BTNH, k_BTKH, v_BTKH, seen, scale=1.0)
        for at, position in enumerate(range(first, first + CHUNK)):
            want = np.mean(np.arange(max(0, position - window + 1), position + 1))
            # A mean of up to five whole numbers.
            np.testing.assert_allclose(out_BTNH[:, at], want, rtol=1e-6)
