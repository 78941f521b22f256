"""The compiled part of decoding: prompts are read in chunks, then a loop on the device adds tokens.

Shapes are rounded up to a few sizes (`bucket`), so that most prompts find their programs compiled.
Rows of a batch are padded on the right and independent: each has its position, its random key and
its number of tokens left.

Letters: B batch, T time, S source time, C chunk, D model, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from research.infer.padding import (
    bucket,
    everywhere,
    mark_seen,
    pad_numbers,
    pad_texts,
    row_count,
    rowwise,
    text_batch,
)
from research.infer.progress import reading
from research.infer.prompt_images import cut, prompt_chunk, soften_prompts
from research.infer.sampling import SamplingConfig, log_probability, one_hot, sample
from research.models.cache import StackedCache
from research.models.kv import KVCache
from research.models.model import Model
from research.parallel.axes import AxisRules
from research.parallel.placement import gather_axis
from research.tree import Tree

TOKENS = 32  # most tokens that one call of `advance` adds to a row


@dataclass(frozen=True)
class Start:
    """A batch of texts to continue, on the host.

    prompts     token ids of each text
    sources     token ids that an encoder-decoder's encoder reads, None for decoders
    max_tokens  most new tokens of each text
    streams     two numbers for each text that select its random numbers under `seed`; texts with
                different ones are sampled independently
    media       "images" and "sounds" of each text, [B, M, ...]; None for texts alone
    """

    prompts: Sequence[Sequence[int]]
    sources: Sequence[Sequence[int]] | None
    max_tokens: Sequence[int]
    streams: Sequence[tuple[int, int]]
    seed: int
    media: dict[str, np.ndarray] | None = None


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["cache", "memory", "token_B", "position_B", "left_B", "key_B", "seen_BV"],
    meta_fields=[],
)
@dataclass(frozen=True)
class DecodeState:
    """A batch of texts in the middle of decoding, as the compiled loop carries it.

    token_B     the last token of each row, which is not in the cache yet
    position_B  its position
    left_B      tokens that may still follow it; 0 where the row has ended
    key_B       each row's random key
    seen_BV     true for tokens of the row's text; None without a repetition penalty
    memory      result of `Model.encode` for an encoder-decoder, else None
    """

    cache: KVCache
    memory: tuple | None
    token_B: jax.Array
    position_B: jax.Array
    left_B: jax.Array
    key_B: jax.Array
    seen_BV: jax.Array | None


def begin(
    model: Model,
    params: Tree,
    prepared: Tree,
    start: Start,
    sampling: SamplingConfig,
    stop_ids: np.ndarray,
) -> tuple[DecodeState, jax.Array, jax.Array]:
    """Reads the prompts: (state, first new token of each row int32 [B, 1], its log-probability
    float32 [B, 1] in nats). B is at least the number of texts (`row_count`).

    `prepared` are `params` in the layout of `decode_layout`, or the same tree; prompts are read
    with `params`: many tokens gain nothing from that layout, and a scan compiles faster.
    """
    rows = row_count(len(start.prompts), model)
    seen_BV = mark_seen(start.prompts, rows, model, sampling)
    state, last_B1D = read_prompts(model, params, start, rows, seen_BV)
    if isinstance(state.cache, StackedCache) and isinstance(prepared["layers"], tuple):
        state = replace(state, cache=_layered(state.cache))
    return _first(prepared, state, last_B1D, stop_ids, model=model, sampling=sampling)


def read_prompts(
    model: Model, params: Tree, start: Start, rows: int, seen_BV: np.ndarray | None = None
) -> tuple[DecodeState, jax.Array]:
    """(the state with the prompts in the cache of so many rows, the model's states [B, 1, D] at
    each row's last prompt token)."""
    lengths_B = pad_numbers([len(ids) for ids in start.prompts], rows)
    left_B = pad_numbers(start.max_tokens, rows)
    longest = int(lengths_B.max())
    chunk = prompt_chunk(model.config, longest, start.media)
    tokens_BT = pad_texts(start.prompts, rows, chunk * math.ceil(longest / chunk))
    source_BS = source_lengths_B = None
    if start.sources is not None:
        source_BS = pad_texts(start.sources, rows, bucket(max(map(len, start.sources))))
        source_lengths_B = pad_numbers([len(ids) for ids in start.sources], rows)
    streams_B2 = np.zeros((rows, 2), np.uint32)
    streams_B2[: len(start.streams)] = start.streams
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
    soft = {}
    if start.media is not None:
        soft = soften_prompts(params, tokens_BT, lengths_B, start.media, model=model)
    return _read(model, params, state, tokens_BT, lengths_B, chunk, soft)


def _read(
    model: Model,
    params: Tree,
    state: DecodeState,
    tokens_BT: np.ndarray,
    lengths_B: np.ndarray,
    chunk: int,
    soft: dict[str, jax.Array],
) -> tuple[DecodeState, jax.Array]:
    """(the state with the prompts in its cache, the model's states [B, 1, D] at each row's last
    prompt token). Chunk by chunk, so that attention needs chunk x length scores at a time."""
    longest = int(lengths_B.max())
    show, last_B1D = reading(longest), None
    for first in range(0, longest, chunk):
        tokens_BC = tokens_BT[:, first : first + chunk]
        here = tokens_BC, np.int32(first), lengths_B, cut(soft, first, chunk)
        state, last_B1D = _feed(params, state, last_B1D, *here, model=model)
        show(min(first + chunk, longest), last_B1D)
    return state, last_B1D


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
    """(state, up to `limit` more tokens int32 [B, TOKENS], their log-probabilities in nats).

    Rows with `open_B` false end before the first of them: the host has found a stop string. The
    loop ends when all rows have ended. Entries after a row's end are arbitrary.
    """
    state = _placed(replace(state, left_B=jnp.where(open_B, state.left_B, 0)), model.rules)
    ids_BT = rowwise(jnp.zeros((open_B.shape[0], TOKENS), jnp.int32), model.rules)
    carry = (jnp.int32(0), state, ids_BT, ids_BT.astype(jnp.float32))

    def _unfinished(carry):
        return (carry[0] < limit) & jnp.any(carry[1].left_B > 0)

    def _write(carry):
        index, state, ids_BT, logprobs_BT = carry
        # A row that has ended goes through the model as padding (segment 0), which enters no cache.
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

    _, state, ids_BT, logprobs_BT = lax.while_loop(_unfinished, _write, carry)
    return state, everywhere(ids_BT), everywhere(logprobs_BT)


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
    """The state before the prompts are read; runs the encoder of an encoder-decoder."""
    cache = model.make_cache(lengths_B.shape[0], length, chunk)
    cache = cache.layered() if isinstance(params["layers"], tuple) else cache  # copies zeros alone
    memory = None
    if source_BS is not None:
        batch = text_batch(source_BS, 0, source_lengths_B, model.rules)
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
    params, state, last_B1D, tokens_BT, first, lengths_B, soft, *, model
) -> tuple[DecodeState, jax.Array]:
    """The state with the T prompt tokens from position `first` on in its cache, and the model's
    states [B, 1, D] at each row's last prompt token, once it has been read (else zeros)."""
    batch = text_batch(tokens_BT, first, lengths_B, model.rules) | soft
    batch["lengths"] = rowwise(lengths_B, model.rules)  # of which this chunk shows a part
    hidden_BTD, cache = model.decode(params, batch, state.cache, state.memory)
    last_BT1 = (batch["positions"] == rowwise(lengths_B, model.rules)[:, None] - 1)[:, :, None]
    # A masked sum and no gather: rows may end in different chunks, and be split over devices.
    here_B1D = jnp.sum(jnp.where(last_BT1, hidden_BTD, 0), axis=1, keepdims=True)
    return replace(state, cache=cache), here_B1D if last_B1D is None else last_B1D + here_B1D


_layered = jax.jit(StackedCache.layered)


@partial(jax.jit, static_argnames=("model", "sampling"), donate_argnames="state")
def _first(
    params, state, hidden_B1D, stop_ids, *, model, sampling
) -> tuple[DecodeState, jax.Array, jax.Array]:
    state, logprob_B = _pick(params, hidden_B1D, state, stop_ids, model, sampling)
    return state, everywhere(state.token_B[:, None]), everywhere(logprob_B[:, None])


def _pick(
    params, hidden_B1D, state: DecodeState, stop_ids, model: Model, sampling: SamplingConfig
) -> tuple[DecodeState, jax.Array]:
    """The state after sampling a token from the states of the last one, and the new token's
    log-probability [B]."""
    # Sampling compares a row's logits with each other, so the vocabulary is gathered.
    logits_BV = gather_axis(model.logits(params, hidden_B1D)[:, 0], axis=1)
    # A draw depends on the row's key and the position, not on the batch or the calls of `advance`.
    keys_B = jax.vmap(jax.random.fold_in)(state.key_B, state.position_B)
    token_B = sample(logits_BV, keys_B, sampling, state.seen_BV)
    logprob_B = log_probability(logits_BV, token_B, sampling, state.seen_BV)
    ended_B = jnp.any(token_B[:, None] == stop_ids[None, :], axis=1)
    left_B = jnp.where(ended_B, 0, jnp.maximum(state.left_B - 1, 0))
    seen_BV = None if state.seen_BV is None else state.seen_BV | one_hot(token_B, logits_BV)
    state = replace(
        state, token_B=token_B, position_B=state.position_B + 1, left_B=left_B, seen_BV=seen_BV
    )
    return _placed(state, model.rules), rowwise(logprob_B, model.rules)


def _placed(state: DecodeState, rules: AxisRules) -> DecodeState:
    """The state with its rows split over the devices as a batch is."""
    names = ("token_B", "position_B", "left_B", "key_B", "seen_BV")
    return replace(
        state,
        **{name: rowwise(x, rules) for name in names if (x := getattr(state, name)) is not None},
    )
