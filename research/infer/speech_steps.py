"""The compiled part of a transcription: a window is heard, a prompt read, and texts go on token by
token under the rules of times.

Letters: B rows, which are texts of one window; T prompt tokens, F log-mel frames, m their bands, S
states of the encoder, D model, V vocabulary, k candidates.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from research.infer.padding import text_batch
from research.models.cache import LayeredCache, StackedCache
from research.models.model import Model
from research.tree import Tree


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["words_B", "least_B", "weighed_B"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Rules:
    """What may follow each text.

    words_B    bool: words may follow, and not only times and the end
    least_B    int32: the first time that may follow, V for none
    weighed_B  bool: a time must follow where all times together are likelier than any other token
    """

    words_B: jax.Array
    least_B: jax.Array
    weighed_B: jax.Array


@partial(jax.jit, static_argnames="model")
def hear(params: Tree, mel_1Fm: jax.Array, *, model: Model) -> tuple:
    """What the decoder reads of a window, as `Model.encode` has it."""
    return model.encode(params, {"mel": mel_1Fm})


@partial(jax.jit, static_argnames=("model", "length"))
def read(
    params: Tree, memory, tokens_1T, count, start, *, model: Model, length: int
) -> tuple[StackedCache, jax.Array, jax.Array]:
    """(the cache of one row with `count` prompt tokens, of `length` slots, logits float32 [1, V] of
    what follows them, and those behind the token at the place `start`)."""
    cache = model.make_cache(1, length, tokens_1T.shape[1])
    batch = text_batch(tokens_1T, 0, count[None], model.rules)
    hidden_1TD, cache = model.decode(params, batch, cache, memory)
    places_2 = jnp.stack([count - 1, start])
    logits_12V = model.logits(params, jnp.take(hidden_1TD, places_2, axis=1))
    last_1V, start_1V = jnp.moveaxis(logits_12V.astype(jnp.float32), 1, 0)
    return cache, last_1V, start_1V


@partial(jax.jit, static_argnames=("rows", "apart"))
def spread(cache: StackedCache, *, rows: int, apart: bool) -> StackedCache | LayeredCache:
    """The cache of one row as that of `rows` equal ones, with an array for each layer where they
    are `apart`. What they hear stays one."""
    cache = cache.taken(jnp.zeros(rows, jnp.int32))
    return cache.layered() if apart else cache


@partial(jax.jit, static_argnames="model", donate_argnames="cache")
def extend(
    params: Tree, cache, memory, rows_B, tokens_B, position, *, model: Model
) -> tuple[StackedCache | LayeredCache, jax.Array]:
    """(cache, logits float32 [B, V]) after each text, which goes on from the cache of `rows_B`, has
    got its new token at `position`."""
    ones_B1 = jnp.ones_like(tokens_B)[:, None]
    batch = {"inputs": tokens_B[:, None], "positions": ones_B1 * position, "segments": ones_B1}
    hidden_B1D, cache = model.decode(params, batch, cache.taken(rows_B), memory)
    return cache, model.logits(params, hidden_B1D)[:, 0].astype(jnp.float32)


@partial(jax.jit, static_argnames=("times", "end"))
def allowed(logits_BV, rules: Rules, hidden_V, *, times: int, end: int) -> jax.Array:
    """Log-probabilities float32 [B, V] among what may follow, -inf elsewhere; `hidden_V` is true
    for what never may, `times` the first time and `end` the end."""
    ids_V = jnp.arange(logits_BV.shape[1])[None]
    early_BV = (ids_V >= times) & (ids_V < rules.least_B[:, None])
    words_BV = (ids_V < end) & ~rules.words_B[:, None]
    hidden_BV = hidden_V[None] | early_BV | words_BV
    logprobs_BV = jax.nn.log_softmax(jnp.where(hidden_BV, -jnp.inf, logits_BV), axis=-1)
    is_time_V = ids_V >= times
    time_B = jax.nn.logsumexp(jnp.where(is_time_V, logprobs_BV, -jnp.inf), axis=-1)
    other_B = jnp.max(jnp.where(is_time_V, -jnp.inf, logprobs_BV), axis=-1)
    due_B = rules.weighed_B & (time_B > other_B)
    # Among times alone, the log-probabilities are those less the times' own.
    only_BV = jnp.where(is_time_V, logprobs_BV - time_B[:, None], -jnp.inf)
    return jnp.where(due_B[:, None], only_BV, logprobs_BV)


@partial(jax.jit, static_argnames="count")
def best(logprobs_BV, *, count: int) -> tuple[jax.Array, jax.Array]:
    """(log-probabilities [B, k], ids int32 [B, k]) of the likeliest tokens of each row."""
    return lax.top_k(logprobs_BV, count)


@jax.jit
def draw(logprobs_BV, temperature, key) -> tuple[jax.Array, jax.Array]:
    """(log-probabilities [B, 1], ids int32 [B, 1]) of a token of each row, drawn at a temperature;
    the probabilities are those before it."""
    ids_B = jax.random.categorical(key, logprobs_BV / temperature, axis=-1)
    ids_B1 = ids_B.astype(jnp.int32)[:, None]
    return jnp.take_along_axis(logprobs_BV, ids_B1, axis=1), ids_B1
