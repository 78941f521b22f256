"""Sampling: from logits to the next token.

The functions on logits take float32 [B, V] and exclude a token by setting it to minus infinity. A
`Number` is a float for all rows or an array [B, 1] with one for each. Results equal those of
transformers' logits processors, in their order: penalty, temperature, top-k, top-p, min-p.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from research.parallel.placement import gather_axis

Number = float | jax.Array


@dataclass(frozen=True)
class SamplingConfig:
    """How a text is continued. 0 turns `top_k` and `min_p` off, 1 `top_p` and `repetition_penalty`.

    temperature  divides the logits; 0 takes the likeliest token
    stop         strings that end a text; the text is cut before them
    stop_ids     tokens that end a text, beside the tokenizer's end token
    max_tokens   most new tokens
    bos          put the token that begins a text in front of prompts given as strings
    decoder_ids  tokens that the decoder of an encoder-decoder starts from; () for the one that it
                 was trained to start from
    scored       whose log-probabilities are given with the tokens: "model", before temperature and
                 the like, or "sampled", those of the distribution that they were drawn from

    ValueError for a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 64
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    seed: int = 0
    bos: bool = True
    decoder_ids: tuple[int, ...] = ()
    scored: str = "model"

    def __post_init__(self):
        for name, good, wanted in (
            (
                "temperature",
                0 <= self.temperature < float("inf"),
                "at least 0 (0: the likeliest token)",
            ),
            ("top_k", self.top_k >= 0, "at least 0 (0: off)"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1] (1: off)"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1] (0: off)"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "positive (1: off)"),
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("seed", 0 <= self.seed < 2**32, "in [0, 2**32)"),
            (
                "stop",
                "" not in self.stop,
                "without an empty string, which would end every text at once",
            ),
            ("scored", self.scored in ("model", "sampled"), "'model' or 'sampled'"),
        ):
            if not good:
                raise ValueError(f"sampling.{name}={getattr(self, name)!r} must be {wanted}")

    @property
    def distribution(self) -> "SamplingConfig":
        """The config with the fields at their defaults that do not change a token's distribution.
        Programs are compiled for this one, so a new seed, length or stop string compiles nothing.
        """
        return replace(SamplingConfig(), **{name: getattr(self, name) for name in _DISTRIBUTION})


def choose_sampling(
    recommended: Mapping[str, float],
    chosen: Mapping[str, Any],
    otherwise: Mapping[str, float] | None = None,
) -> SamplingConfig:
    """The fields that the user has `chosen` (None: has not), else those that the checkpoint
    recommends (its generation_config.json) or, where it recommends none, those of `otherwise`."""
    given = {name: value for name, value in chosen.items() if value is not None}
    return SamplingConfig(**{**(recommended or otherwise or {}), **given})


def recommendation(recommended: Mapping[str, float], chosen: Mapping[str, Any]) -> str:
    """A line for the user about the fields that are drawn as the checkpoint recommends, since the
    user has `chosen` none (None) for them; "" where there are none."""
    taken = {name: value for name, value in recommended.items() if chosen.get(name) is None}
    if chosen.get("temperature") == 0:  # then the others decide nothing, see `process`
        taken = {name: value for name, value in taken.items() if name == "repetition_penalty"}
    if not taken:
        return ""
    fields = ", ".join(f"{name}={value:g}" for name, value in taken.items())
    flags = ", ".join(f"--{name}" for name in taken)
    return f"tokens are drawn with {fields}, as the checkpoint recommends; {flags} to change it"


# The bits of 1.0 are 0x3F800000, and positive floats are in the order of their bits.
_BITS_OVER_1 = 0x3F800001  # the bits of the least float32 above 1
_BITS_OVER_ALL = 0x7F800001  # the bits of infinity, and 1
_DISTRIBUTION = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "scored")


def penalize(logits_BV: jax.Array, seen_BV: jax.Array, penalty: Number) -> jax.Array:
    """Logits of seen tokens divided by the penalty, multiplied where negative (arXiv:1909.05858,
    section 4.1)."""
    return jnp.where(
        seen_BV, jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty), logits_BV
    )


def keep_top_k(logits_BV: jax.Array, k: int | jax.Array) -> jax.Array:
    """Keeps the k likeliest tokens, and those as likely as the last of them (arXiv:1805.04833). An
    array [B, 1] has a k for each row."""
    # A comparison keeps ties, as transformers does; ids from `top_k` would cut them.
    if isinstance(k, int):
        least_B1 = lax.top_k(logits_BV, min(k, logits_BV.shape[1]))[0][:, -1:]
    else:
        least_B1 = _kth_largest(logits_BV, jnp.minimum(k, logits_BV.shape[1]))
    return jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)


def _kth_largest(x_BV: jax.Array, k_B1: jax.Array) -> jax.Array:
    """The k-th largest of each row, float32 [B, 1]."""
    # A binary search like that of `keep_top_p`. For floats of any sign to be in the order of their
    # bits, those of negative ones but the sign are turned over.
    bits_BV = lax.bitcast_convert_type(x_BV, jnp.int32)
    order_BV = jnp.where(bits_BV < 0, bits_BV ^ 0x7FFFFFFF, bits_BV)

    def _halve(_, bounds):
        low_B1, high_B1 = bounds
        # The mean without overflow, of integers of 32 bits that are up to 2^32 apart.
        middle_B1 = (low_B1 & high_B1) + ((low_B1 ^ high_B1) >> 1)
        enough_B1 = jnp.sum(order_BV >= middle_B1, axis=-1, keepdims=True) >= k_B1
        return jnp.where(enough_B1, middle_B1, low_B1), jnp.where(enough_B1, high_B1, middle_B1)

    low_B1 = jnp.full_like(k_B1, jnp.iinfo(jnp.int32).min)
    low_B1, _ = lax.fori_loop(0, 32, _halve, (low_B1, jnp.full_like(low_B1, _BITS_OVER_ALL)))
    bits_B1 = jnp.where(low_B1 < 0, low_B1 ^ 0x7FFFFFFF, low_B1)
    return lax.bitcast_convert_type(bits_B1, jnp.float32)


def keep_top_p(logits_BV: jax.Array, p: Number) -> jax.Array:
    """Keeps the fewest likeliest tokens whose probabilities sum to p or more, and those as likely
    as the last of them (arXiv:1904.09751, section 3.1)."""
    probs_BV = jax.nn.softmax(logits_BV, axis=-1)

    def _halve(_, bounds):
        # A binary search for the least probability to keep. Floats from 0 to 1 are in the order of
        # their bits read as integers, below 2^30, so 30 halvings find it exactly. Sorting 50,000
        # words would take a CPU as long as the rest of a small model.
        low_B1, high_B1 = bounds
        middle_B1 = (low_B1 + high_B1) // 2
        kept_BV = probs_BV >= lax.bitcast_convert_type(middle_B1, jnp.float32)
        enough_B1 = jnp.sum(jnp.where(kept_BV, probs_BV, 0), axis=-1, keepdims=True) >= p
        return jnp.where(enough_B1, middle_B1, low_B1), jnp.where(enough_B1, high_B1, middle_B1)

    # Both bounds are bits of floats: a threshold of 0.0 keeps all tokens, one above 1 none.
    low_B1 = jnp.zeros_like(probs_BV[:, :1], jnp.int32)
    low_B1, _ = lax.fori_loop(0, 30, _halve, (low_B1, low_B1 + _BITS_OVER_1))
    return jnp.where(probs_BV < lax.bitcast_convert_type(low_B1, jnp.float32), -jnp.inf, logits_BV)


def keep_min_p(logits_BV: jax.Array, p: Number) -> jax.Array:
    """Keeps the tokens at least p times as likely as the likeliest (arXiv:2407.01082)."""
    probs_BV = jax.nn.softmax(logits_BV, axis=-1)
    return jnp.where(probs_BV < p * jnp.max(probs_BV, axis=-1, keepdims=True), -jnp.inf, logits_BV)


def process(
    logits_BV: jax.Array, config: SamplingConfig, seen_BV: jax.Array | None = None
) -> jax.Array:
    """Logits of the distribution that `config` describes. At temperature 0 only the repetition
    penalty is applied: the others do not change which token is likeliest."""
    if config.repetition_penalty != 1:
        logits_BV = penalize(logits_BV, seen_BV, config.repetition_penalty)
    if config.temperature == 0:
        return logits_BV
    logits_BV = logits_BV / config.temperature
    if config.top_k:
        logits_BV = keep_top_k(logits_BV, config.top_k)
    if config.top_p < 1:
        logits_BV = keep_top_p(logits_BV, config.top_p)
    if config.min_p > 0:
        logits_BV = keep_min_p(logits_BV, config.min_p)
    return logits_BV


def sample(
    logits_BV: jax.Array,
    keys_B: jax.Array,
    config: SamplingConfig,
    seen_BV: jax.Array | None = None,
) -> jax.Array:
    """The next token of each row, int32 [B]. Each row has its own key, so rows do not affect each
    other.

    `seen_BV` is true for the tokens of the row's text; only a repetition penalty needs it.
    """
    logits_BV = process(gather_axis(logits_BV.astype(jnp.float32), axis=1), config, seen_BV)
    if config.temperature == 0:
        return likeliest(logits_BV)
    return draw(jax.nn.softmax(logits_BV, axis=-1), jax.vmap(jax.random.uniform)(keys_B))


def likeliest(logits_BV: jax.Array) -> jax.Array:
    """The index of the largest logit, the first of equals, int32 [B]; on a CPU `argmax` takes seven
    times as long."""
    words, largest_B1 = logits_BV.shape[1], jnp.max(logits_BV, axis=-1, keepdims=True)
    index_1V = jnp.arange(words, dtype=jnp.int32)[None, :]
    return jnp.min(jnp.where(logits_BV == largest_B1, index_1V, words - 1), axis=-1)


def draw(probs_BV: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """The token at which the running sum of probabilities exceeds a uniform number (inverse
    transform sampling), int32 [B].

    This takes one random number a row. Gumbel noise takes one a word, which on a CPU costs more
    than the rest of a small model.
    """
    sums_BV = jnp.cumsum(probs_BV, axis=-1)
    # Scaled by the largest sum, not by 1: rounding may leave the sum of all below the number drawn.
    passed_BV = sums_BV > uniform_B[:, None] * jnp.max(sums_BV, axis=-1, keepdims=True)
    # A parallel prefix sum may decrease or grow in the last bit at a token of probability 0, which
    # must not be drawn for that.
    passed_BV &= probs_BV > 0
    # `argmax` finds the first true; where rounding leaves none, the likeliest token is taken.
    drawn_B = jnp.where(
        jnp.any(passed_BV, axis=-1), jnp.argmax(passed_BV, axis=-1), jnp.argmax(probs_BV, axis=-1)
    )
    return drawn_B.astype(jnp.int32)


def log_probability(
    logits_BV: jax.Array,
    ids_B: jax.Array,
    config: SamplingConfig = SamplingConfig(),
    seen_BV: jax.Array | None = None,
) -> jax.Array:
    """Log-probability in nats, float32 [B], of each row's token, under the model itself or the
    distribution of `config`, as `config.scored` says."""
    logits_BV = logits_BV.astype(jnp.float32)
    if config.scored == "sampled":
        logits_BV = process(logits_BV, config, seen_BV)
    return jnp.sum(jnp.where(one_hot(ids_B, logits_BV), logits_BV, 0), axis=-1) - jax.nn.logsumexp(
        logits_BV, axis=-1
    )


def one_hot(ids_B: jax.Array, like_BV: jax.Array) -> jax.Array:
    """True at each row's token, [B, V]; no gather, so the vocabulary may be split over devices."""
    sharding = None if jax.sharding.get_abstract_mesh().empty else jax.typeof(like_BV).sharding
    return (
        lax.broadcasted_iota(jnp.int32, like_BV.shape, 1, out_sharding=sharding) == ids_B[:, None]
    )
