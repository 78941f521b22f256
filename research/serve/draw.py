"""The next token of rows that each have a sampling of their own.

`research.infer.sampling` has the functions, and the random numbers are those of
`research.infer.decode`: a token depends on the text, its sampling and its position, and neither on
the other rows nor on the step in which it is drawn.

Letters: M rows, S tokens of a text, V vocabulary, W words of 32 bits, A alternatives.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from research.infer.sampling import (
    SamplingConfig,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    likeliest,
    log_probability,
    penalize,
)
from research.serve.penalties import PenaltyRows, penalized

ALTERNATIVES = 20  # most tokens whose log-probabilities are told beside the one that was drawn

# What random numbers are for beside drawing a token: drawing a guess, and keeping one.
DRAFTED, KEPT = 1, 2

_FIELDS = {
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "repetition_penalty": np.float32,
}


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["settings_M1", "seed_M", "stream_M2", "position_M", "top"]
    + ["guided_M1", "allowed_MW", "penalties"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Draws:
    """What decides the next token of each row.

    settings_M1  the fields of a `SamplingConfig` that change a distribution, [M, 1] each, and as
                 "sampled" whether log-probabilities are those of this distribution
    seed_M       the request's seed, and in `stream_M2` two numbers that select its random numbers
                 under it
    position_M   the position of the row's last token
    top          whether any row wants its likeliest tokens
    guided_M1    whether a grammar says which tokens may be drawn, and in `allowed_MW` which: a bit
                 for each, uint32, the least significant one first
    penalties    what is added to its logits
    """

    settings_M1: dict[str, np.ndarray]
    seed_M: np.ndarray
    stream_M2: np.ndarray
    position_M: np.ndarray
    top: np.ndarray
    guided_M1: np.ndarray
    allowed_MW: np.ndarray
    penalties: PenaltyRows


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["token_M", "logprob_M", "top_ids_MA", "top_logprobs_MA"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Told:
    """A token of each row, its log-probability in nats, and the likeliest tokens of the row with
    theirs, which are zeros where no row wanted them."""

    token_M: jax.Array
    logprob_M: jax.Array
    top_ids_MA: jax.Array
    top_logprobs_MA: jax.Array


@partial(jax.tree_util.register_dataclass, data_fields=["ids_M", "probs_MV"], meta_fields=[])
@dataclass(frozen=True)
class Guess:
    """What a draft model says comes next in each row: a token, -1 for none, and the distribution
    that it was drawn from."""

    ids_M: jax.Array
    probs_MV: jax.Array


def settings(configs: Sequence[SamplingConfig]) -> dict[str, np.ndarray]:
    """The `settings_M1` of rows with these samplings."""
    columns = {
        name: np.array([[getattr(config, name)] for config in configs], dtype)
        for name, dtype in _FIELDS.items()
    }
    return {**columns, "sampled": np.array([[c.scored == "sampled"] for c in configs])}


def next_tokens(
    logits_MV: jax.Array, draws: Draws, texts_MS: jax.Array, guess: Guess | None = None
) -> Told:
    """Draws the next token of each row: its `guess`, where that is kept. `texts_MS` are the tokens
    of its text, -1 behind the end."""
    logits_MV = logits_MV.astype(jnp.float32)
    may_MV = allowed(penalized(logits_MV, draws.penalties, texts_MS), draws)
    shaped_MV = shaped(may_MV, draws.settings_M1, texts_MS)
    greedy_M = draws.settings_M1["temperature"][:, 0] == 0
    token_M = likeliest(shaped_MV)
    token_M = lax.cond(
        jnp.all(greedy_M),
        lambda: token_M,
        lambda: jnp.where(greedy_M, token_M, _drawn(shaped_MV, draws, guess)),
    )
    # Of the model itself, unless a row asks for those of what it is drawn from.
    told_MV = _where(draws.settings_M1["sampled"], lambda _: shaped_MV, logits_MV)
    return tell(told_MV, token_M, draws.top)


def tell(logits_MV: jax.Array, token_M: jax.Array, top: jax.Array) -> Told:
    """What is told of tokens that follow in rows with these logits."""
    return Told(token_M, log_probability(logits_MV, token_M), *_likeliest(logits_MV, top))


def shaped(logits_MV: jax.Array, s: dict[str, jax.Array], texts_MS: jax.Array) -> jax.Array:
    """`research.infer.sampling.process`, with a config for each row."""

    def _seen(logits_MV):
        # Out of range for the end of a text, which "drop" leaves out: -1 would be the last token.
        ids_MS = jnp.where(texts_MS < 0, logits_MV.shape[1], texts_MS)
        rows_M1 = jnp.arange(logits_MV.shape[0])[:, None]
        seen_MV = jnp.zeros(logits_MV.shape, bool).at[rows_M1, ids_MS].set(True, mode="drop")
        return penalize(logits_MV, seen_MV, s["repetition_penalty"])

    logits_MV = _where(s["repetition_penalty"] != 1, _seen, logits_MV)
    warm_M1 = s["temperature"] > 0
    logits_MV = logits_MV / jnp.where(warm_M1, s["temperature"], 1)
    for name, on_M1, keep in (
        ("top_k", s["top_k"] > 0, keep_top_k),
        ("top_p", s["top_p"] < 1, keep_top_p),
        ("min_p", s["min_p"] > 0, keep_min_p),
    ):
        # Each reads what the one before it has kept.
        kept = lambda logits_MV, keep=keep, name=name: keep(logits_MV, s[name])
        logits_MV = _where(warm_M1 & on_M1, kept, logits_MV)
    return logits_MV


def allowed(logits_MV: jax.Array, draws: Draws) -> jax.Array:
    """The logits of what a grammar allows, in the rows that have one."""
    return _where(draws.guided_M1, partial(_keep_allowed, draws.allowed_MW), logits_MV)


def _keep_allowed(allowed_MW: jax.Array, logits_MV: jax.Array) -> jax.Array:
    """Keeps the tokens whose bits are set."""
    tokens_1V = jnp.arange(logits_MV.shape[1], dtype=jnp.uint32)[None]
    bits_MV = allowed_MW[:, tokens_1V[0] // 32] >> (tokens_1V % 32)
    return jnp.where(bits_MV & 1 == 1, logits_MV, -jnp.inf)


def _where(on_M1: jax.Array, change: Callable[[jax.Array], jax.Array], x_MV: jax.Array):
    """`change(x)` in the rows where it is on. Where no row wants it, it is not computed: for a
    small model each of these costs as much as a layer."""
    return lax.cond(
        jnp.any(on_M1), lambda x_MV: jnp.where(on_M1, change(x_MV), x_MV), lambda x_MV: x_MV, x_MV
    )


def uniform(draws: Draws, purpose: int | None = None) -> jax.Array:
    """A random number in [0, 1) of each row, float32 [M], by its text, its seed and its position;
    those for different purposes are independent."""

    def _uniform(seed, stream, position):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream[0]), stream[1])
        key = jax.random.fold_in(key, position)
        return jax.random.uniform(key if purpose is None else jax.random.fold_in(key, purpose))

    return jax.vmap(_uniform)(draws.seed_M, draws.stream_M2, draws.position_M)


def _drawn(shaped_MV: jax.Array, draws: Draws, guess: Guess | None) -> jax.Array:
    """A token of each row by its own random number, int32 [M]."""
    probs_MV = jax.nn.softmax(shaped_MV, axis=-1)
    if guess is None:
        return draw(probs_MV, uniform(draws))
    return verified(probs_MV, guess, uniform(draws, KEPT), uniform(draws))


def verified(p_MV: jax.Array, guess: Guess, kept_M: jax.Array, drawn_M: jax.Array) -> jax.Array:
    """The next token of each row, int32 [M], drawn from p by two random numbers: a guess x from q
    where the first is below p(x) / q(x), else what the second draws from max(p - q, 0)
    (arXiv:2211.17192, section 2.3)."""
    ids_M1, there_M = jnp.maximum(guess.ids_M, 0)[:, None], guess.ids_M >= 0
    p_M, q_M = (jnp.take_along_axis(x, ids_M1, axis=1)[:, 0] for x in (p_MV, guess.probs_MV))
    rest_MV = jnp.maximum(p_MV - guess.probs_MV, 0)
    # Nothing is guessed, or p is q but for rounding and nothing is left.
    whole_M = ~there_M | (jnp.max(rest_MV, axis=1) == 0)
    token_M = draw(jnp.where(whole_M[:, None], p_MV, rest_MV), drawn_M)
    return jnp.where(there_M & (kept_M * q_M < p_M), guess.ids_M, token_M)


def _likeliest(logits_MV: jax.Array, wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(ids, log-probabilities in nats) of each row's likeliest tokens, [M, A] each; zeros unless
    `wanted`."""
    M, V = logits_MV.shape
    count = min(ALTERNATIVES, V)

    def _found():
        largest_MA, ids_MA = lax.top_k(logits_MV, count)
        return ids_MA, largest_MA - jax.nn.logsumexp(logits_MV, axis=-1, keepdims=True)

    nothing = jnp.zeros((M, count), jnp.int32), jnp.zeros((M, count), jnp.float32)
    return lax.cond(wanted, _found, lambda: nothing)


def alternatives(told: Told, rows: slice, count: int) -> list[tuple[tuple[int, float], ...]]:
    """The first `count` likeliest tokens of some rows, with their log-probabilities."""
    ids, logprobs = np.asarray(told.top_ids_MA)[rows], np.asarray(told.top_logprobs_MA)[rows]
    return [tuple(zip(i[:count].tolist(), l[:count].tolist())) for i, l in zip(ids, logprobs)]
