"""The compiled side of decoding: prompts are fed in chunks, then tokens follow in a loop that never
returns to Python.

Shapes come from a few sizes (`bucket`), so that a second prompt finds its programs compiled. Rows
of a batch are padded on the right and share nothing: every row has its own position, its own random
key and its own number of tokens left.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from research.infer.padding import mark_seen, pad_numbers, pad_texts, row_count
from research.infer.sampling import SamplingConfig, log_probability, one_hot, sample
from research.models.cache import StackedCache
from research.models.kv import KVCache
from research.models.model import Model
from research.parallel.axes import AxisRules, constrain
from research.parallel.placement import gather_axis
from research.tree import Tree

# tokens of a prompt fed at once; bounds the memory of attention and the slots of a windowed cache
PREFILL = 512
TOKENS = 32  # the most that one call of `advance` writes


@dataclass(frozen=True)
class Start:
    """A batch of texts to continue, on the host: ids [B][n], for encoder-decoders also the
    encoder's, and limits [B].

    `streams` [B, 2] names each row's random numbers under `seed`: rows that differ in it are
    independent.
    """

    prompts: Sequence[Sequence[int]]
    sources: Sequence[Sequence[int]] | None
    max_tokens: Sequence[int]
    streams: Sequence[tuple[int, int]]
    seed: int


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["cache", "memory", "token_B", "position_B", "left_B", "key_B", "seen_BV"],
    meta_fields=[],
)
@dataclass(frozen=True)
class DecodeState:
    """A batch of texts that are being continued, as the compiled loop carries it.

    Row b's last token `token_B` belongs at `position_B` and is not in the cache yet. `left_B` more
    tokens may follow it, 0 where the row has ended. `memory` is the encoder's of an
    encoder-decoder. `seen_BV` marks the tokens of each row, where a repetition penalty asks for
    them.
    """

    cache: KVCache
    memory: tuple | None
    token_B: jax.Array
    position_B: jax.Array
    left_B: jax.Array
    key_B: jax.Array
    seen_BV: jax.Array | None


def chunk_size(longest: int) -> int:
    """Tokens fed at once for prompts of up to `longest`: 16, 32, 64, ..., PREFILL."""
    return min(max(16, 2 ** math.ceil(math.log2(longest))), PREFILL)


def bucket(size: int) -> int:
    """The next of 64, 80, 96, 112, 128, 160, ...: four sizes a doubling, of which at most a fifth
    is unused."""
    size = max(size, 64)
    step = 2 ** (math.ceil(math.log2(size)) - 3)
    return step * math.ceil(size / step)


def begin(
    model: Model,
    params: Tree,
    prepared: Tree,
    start: Start,
    sampling: SamplingConfig,
    stop_ids: np.ndarray,
) -> tuple[DecodeState, jax.Array, jax.Array]:
    """Reads the prompts: (state, each row's first token, int32 [B, 1], its log-probability).

    `prepared` are the parameters in the layout of `decode_layout.prepare`, which `advance` takes
    too. Prompts are read with `params`: a product of many tokens gains nothing from that layout,
    and a scan over stacked layers compiles faster than the unrolled ones.
    """
    rows = row_count(len(start.prompts), model)
    lengths_B = pad_numbers([len(ids) for ids in start.prompts], rows)
    left_B = pad_numbers(start.max_tokens, rows)
    longest = int(lengths_B.max())
    chunk = chunk_size(longest)
    tokens_BT = pad_texts(start.prompts, rows, chunk * math.ceil(longest / chunk))
    source_BS = source_lengths_B = None
    if start.sources is not None:
        source_BS = pad_texts(start.sources, rows, bucket(max(map(len, start.sources))))
        source_lengths_B = pad_numbers([len(ids) for ids in start.sources], rows)
    streams_B2 = np.zeros((rows, 2), np.uint32)
    streams_B2[: len(start.streams)] = start.streams
    seen_BV = mark_seen(start.prompts, rows, model, sampling)
    length = bucket(int((lengths_B + left_B).max()))
    state = empty(
        params,
        lengths_B,
        left_B,
        seen_BV,
        source_BS,
        source_lengths_B,
        np.uint32(start.seed),
        streams_B2,
        model=model,
        length=length,
        chunk=chunk,
    )
    last_B1D = None
    for first in range(0, longest, chunk):
        tokens_BC = tokens_BT[:, first : first + chunk]
        state, last_B1D = _feed(
            params, state, last_B1D, tokens_BC, np.int32(first), lengths_B, model=model
        )
    if isinstance(prepared["layers"], tuple):
        state = replace(state, cache=_layered(state.cache))
    return _first(prepared, state, last_B1D, stop_ids, model=model, sampling=sampling)


@partial(jax.jit, static_argnames=("model", "sampling"), donate_argnames="state")
def advance(
    params: Tree,
    state: DecodeState,
    open_B: jax.Array,
    limit: jax.Array,
    stop_ids: jax.Array,
    *,
    model: Model,
    sampling: SamplingConfig,
) -> tuple[DecodeState, jax.Array, jax.Array]:
    """Up to `limit` more tokens, int32 [B, TOKENS], and their log-probabilities; rows that are not
    open end here.

    A row's entries after its end mean nothing, and the loop ends with the last row.
    """
    state = _placed(replace(state, left_B=jnp.where(open_B, state.left_B, 0)), model.rules)
    ids_BT = _rowwise(jnp.zeros((open_B.shape[0], TOKENS), jnp.int32), model.rules)
    carry = (jnp.int32(0), state, ids_BT, ids_BT.astype(jnp.float32))

    def unfinished(carry):
        return (carry[0] < limit) & jnp.any(carry[1].left_B > 0)

    def write(carry):
        index, state, ids_BT, logprobs_BT = carry
        batch = {
            "inputs": state.token_B[:, None],
            "positions": state.position_B[:, None],
            "segments": (state.left_B > 0).astype(jnp.int32)[:, None],
        }
        hidden_B1D, cache = model.decode(params, batch, state.cache, state.memory)
        state, logprob_B = _pick(
            params, hidden_B1D, replace(state, cache=cache), stop_ids, model, sampling
        )
        put = partial(lax.dynamic_update_slice_in_dim, start_index=index, axis=1)
        return (
            index + 1,
            state,
            put(ids_BT, state.token_B[:, None]),
            put(logprobs_BT, logprob_B[:, None]),
        )

    _, state, ids_BT, logprobs_BT = lax.while_loop(unfinished, write, carry)
    return state, _everywhere(ids_BT), _everywhere(logprobs_BT)


@partial(jax.jit, static_argnames=("model", "length", "chunk"))
def empty(
    params,
    lengths_B,
    left_B,
    seen_BV,
    source_BS,
    source_lengths_B,
    seed,
    streams_B2,
    *,
    model,
    length,
    chunk,
) -> DecodeState:
    """The state before anything is read; an encoder-decoder's encoder runs here."""
    cache = model.make_cache(lengths_B.shape[0], length, chunk)
    memory = None
    if source_BS is not None:
        batch = _batch(source_BS, 0, source_lengths_B, model.rules)
        memory = model.encode(params, {f"encoder_{name}": field for name, field in batch.items()})
    key = jax.random.key(seed)
    key_B = jax.vmap(
        lambda stream: jax.random.fold_in(jax.random.fold_in(key, stream[0]), stream[1])
    )(streams_B2)
    zeros_B = jnp.zeros_like(lengths_B)
    state = DecodeState(cache, memory, zeros_B, lengths_B - 1, left_B, key_B, seen_BV)
    return _placed(state, model.rules)


@partial(jax.jit, static_argnames="model", donate_argnames=("state", "last_B1D"))
def _feed(
    params, state, last_B1D, tokens_BT, first, lengths_B, *, model
) -> tuple[DecodeState, jax.Array]:
    """The state with tokens `first` to `first + T` in its cache, and the last states so far of each
    row's last token."""
    batch = _batch(tokens_BT, first, lengths_B, model.rules)
    hidden_BTD, cache = model.decode(params, batch, state.cache, state.memory)
    last_BT1 = (batch["positions"] == _rowwise(lengths_B, model.rules)[:, None] - 1)[:, :, None]
    found_B1D = jnp.sum(jnp.where(last_BT1, hidden_BTD, 0), axis=1, keepdims=True)
    return replace(state, cache=cache), found_B1D if last_B1D is None else last_B1D + found_B1D


_layered = jax.jit(StackedCache.layered)


@partial(jax.jit, static_argnames=("model", "sampling"), donate_argnames="state")
def _first(
    params, state, hidden_B1D, stop_ids, *, model, sampling
) -> tuple[DecodeState, jax.Array, jax.Array]:
    state, logprob_B = _pick(params, hidden_B1D, state, stop_ids, model, sampling)
    return state, _everywhere(state.token_B[:, None]), _everywhere(logprob_B[:, None])


def _pick(
    params, hidden_B1D, state: DecodeState, stop_ids, model: Model, sampling: SamplingConfig
) -> tuple[DecodeState, jax.Array]:
    """The state one token on, and that token's log-probability [B]."""
    logits_BV = gather_axis(model.logits(params, hidden_B1D)[:, 0], axis=1)
    keys_B = jax.vmap(jax.random.fold_in)(state.key_B, state.position_B)
    token_B = sample(logits_BV, keys_B, sampling, state.seen_BV)
    ended_B = jnp.any(token_B[:, None] == stop_ids[None, :], axis=1)
    left_B = jnp.where(ended_B, 0, jnp.maximum(state.left_B - 1, 0))
    seen_BV = None if state.seen_BV is None else state.seen_BV | one_hot(token_B, logits_BV)
    state = replace(
        state, token_B=token_B, position_B=state.position_B + 1, left_B=left_B, seen_BV=seen_BV
    )
    logprob_B = log_probability(logits_BV, token_B)
    return _placed(state, model.rules), _rowwise(logprob_B, model.rules)


def _batch(tokens_BT, first, lengths_B, rules: AxisRules) -> dict[str, jax.Array]:
    """The fields of a model's batch for tokens at positions `first`, `first` + 1, ... of
    right-padded rows."""
    positions_BT = jnp.broadcast_to(
        first + jnp.arange(tokens_BT.shape[1])[None, :], tokens_BT.shape
    )
    fields = {
        "inputs": tokens_BT,
        "positions": positions_BT,
        "segments": positions_BT < lengths_B[:, None],
    }
    return {name: _rowwise(field.astype(jnp.int32), rules) for name, field in fields.items()}


def _placed(state: DecodeState, rules: AxisRules) -> DecodeState:
    """The state with its rows split over the devices as a batch is."""
    names = ("token_B", "position_B", "left_B", "key_B", "seen_BV")
    return replace(
        state,
        **{name: _rowwise(x, rules) for name in names if (x := getattr(state, name)) is not None},
    )


def _rowwise(x: jax.Array, rules: AxisRules) -> jax.Array:
    return constrain(x, ("batch", *["position"] * (x.ndim - 1)), rules)


def _everywhere(x: jax.Array) -> jax.Array:
    return x if jax.sharding.get_abstract_mesh().empty else jax.reshard(x, PartitionSpec())
