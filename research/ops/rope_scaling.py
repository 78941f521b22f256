"""Scaling of rotary frequencies to texts longer than those that a model was first trained on.

Each kind lowers the frequencies of `research.ops.rope` in its own way; two of them also multiply
the cosines and sines, and two depend on how long the text is. All compute what transformers does.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are lowered for long texts. A factor of 1 changes nothing, whatever
    the kind, except with "longrope". A kind uses the fields named here and no others:

    llama3    factor, low_factor, high_factor, original_length (arXiv:2407.21783, section 3.4;
              constants of the released code): wavelengths over `original_length / low_factor` are
              multiplied by `factor`, those under `original_length / high_factor` stay, and between
              them frequencies are interpolated
    linear    factor, by which every frequency is divided (arXiv:2306.15595)
    dynamic   factor, original_length: the base grows with the text once that is longer than
              `original_length` (arXiv:2309.00071, section 3.3)
    yarn      factor, original_length, beta_fast, beta_slow, truncate, attention_factor, score_scale
              (arXiv:2309.00071, section 3.4): pairs that turn more than `beta_fast` times in the
              original length stay, those that turn less than `beta_slow` times are divided by
              `factor`, and between these two pairs, rounded outwards with `truncate`, is a ramp
    longrope  short_factors, long_factors, original_length, factor, attention_factor
              (arXiv:2402.13753): the frequency of each pair is divided by its short factor, or by
              its long factor in texts longer than `original_length`

    Cosines and sines are multiplied by `attention_factor`; 0 stands for what the kind derives of
    `factor`, for "longrope" the longest text over the original length. Attention scores are
    multiplied by (0.1 score_scale ln(factor) + 1)^2 (DeepSeek's released code, `mscale_all_dim`).
    """

    factor: float = 1.0
    low_factor: float = 1.0
    high_factor: float = 4.0
    original_length: int = 8192
    kind: str = "llama3"
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 0.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    score_scale: float = 0.0

    def __post_init__(self):
        for name in ("short_factors", "long_factors"):
            # JSON has lists.
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.kind not in SCALINGS:
            raise ValueError(
                f"model.rope_scaling.kind={self.kind!r}; choose one of {', '.join(SCALINGS)}"
            )
        positive = ("factor", "low_factor", "high_factor", "original_length", "beta_fast")
        for name in (*positive, "beta_slow"):
            _check_positive(name, getattr(self, name))
        for name in ("short_factors", "long_factors"):
            for value in getattr(self, name):
                _check_positive(name, value)
        for name in ("attention_factor", "score_scale"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"model.rope_scaling.{name}={value} must be at least 0")
        for low, high in (("low_factor", "high_factor"), ("beta_slow", "beta_fast")):
            if not getattr(self, low) < getattr(self, high):
                raise ValueError(
                    f"model.rope_scaling.{low}={getattr(self, low)} must be below "
                    f"{high}={getattr(self, high)}"
                )
        if self.kind == "longrope" and not self.short_factors:
            raise ValueError(
                "model.rope_scaling.kind='longrope' wants a number for each rotary pair; set "
                "model.rope_scaling.short_factors and long_factors"
            )

    @property
    def by_length(self) -> bool:
        """True if the frequencies of a text depend on how long it is."""
        return self.kind == "longrope" or (self.kind == "dynamic" and self.factor != 1.0)

    @property
    def multiplier(self) -> float:
        """What cosines and sines are multiplied by."""
        if self.kind not in ("yarn", "longrope") or self.attention_factor:
            return self.attention_factor or 1.0
        if self.factor <= 1:
            return 1.0
        if self.kind == "yarn":
            return 0.1 * math.log(self.factor) + 1.0
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_length))

    @property
    def score_multiplier(self) -> float:
        """What attention scores are multiplied by."""
        if self.kind != "yarn" or self.factor <= 1:
            return 1.0
        return (0.1 * self.score_scale * math.log(self.factor) + 1.0) ** 2


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"model.rope_scaling.{name}={value} must be positive")


def scaled(
    freq: np.ndarray, theta: float, scaling: RopeScaling, lengths: Any = None
) -> np.ndarray | jax.Array:
    """The frequencies [h] of a base `theta` after scaling, float64 [h].

    Where they depend on the length of the text, `lengths` are these, integers of any shape [...],
    and the result is float32 [..., h]; without lengths it is that of short texts.
    """
    if scaling.factor == 1.0 and scaling.kind != "longrope":
        return freq
    return SCALINGS[scaling.kind].apply(freq, theta, scaling, lengths)


def _linear(freq, theta, scaling, lengths):
    return freq / scaling.factor


def _llama3(freq, theta, scaling, lengths):
    wavelength = 2 * math.pi / freq
    # How many wavelengths the original text has room for, between the two bounds as 0 to 1.
    smooth = (scaling.original_length / wavelength - scaling.low_factor) / (
        scaling.high_factor - scaling.low_factor
    )
    # Clipped: 0 for wavelengths over original_length / low_factor, 1 for those under / high_factor.
    smooth = np.clip(smooth, 0.0, 1.0)
    return (1 - smooth) * freq / scaling.factor + smooth * freq


def _dynamic(freq, theta, scaling, lengths):
    if lengths is None:
        return freq
    # theta is multiplied by grown^(d / (d - 2)), so that theta^(-2i / d) of pair i, of d / 2 pairs,
    # is multiplied by grown^(-2i / (d - 2)): the first pair stays, the last is divided by `grown`.
    over = jnp.maximum(lengths, scaling.original_length) / scaling.original_length
    grown = scaling.factor * over.astype(jnp.float32) - (scaling.factor - 1)
    pairs = np.arange(len(freq)) / max(1, len(freq) - 1)
    return _row(freq, lengths) * jnp.exp(-_row(pairs, lengths) * jnp.log(grown)[..., None])


def _yarn(freq, theta, scaling, lengths):
    count = len(freq)

    def _pair(turns: float) -> float:
        """The pair, as a real number, that turns so many times in the original length."""
        return count * math.log(scaling.original_length / (turns * 2 * math.pi)) / math.log(theta)

    low, high = _pair(scaling.beta_fast), _pair(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * count - 1)
    # A ramp without width would divide by zero.
    width = high - low if high != low else 0.001
    lowered = np.clip((np.arange(count) - low) / width, 0.0, 1.0)
    return lowered * freq / scaling.factor + (1 - lowered) * freq


def _longrope(freq, theta, scaling, lengths):
    short, long = (
        freq / np.array(factors) for factors in (scaling.short_factors, scaling.long_factors)
    )
    if lengths is None:
        return short
    beyond = (lengths > scaling.original_length)[..., None]
    return jnp.where(beyond, _row(long, lengths), _row(short, lengths))


def _row(values: np.ndarray, lengths: jax.Array) -> jax.Array:
    """`values` [h] in float32 with leading axes of 1, to broadcast against lengths [..., 1]."""
    return jnp.expand_dims(jnp.asarray(values, jnp.float32), tuple(range(lengths.ndim)))


@dataclass(frozen=True)
class Scaling:
    """A row of `SCALINGS`: the function of a kind (see `scaled`), and the fields that it uses."""

    apply: Callable[..., Any]
    uses: tuple[str, ...]


_ATTENTION = ("factor", "original_length", "attention_factor")
SCALINGS: dict[str, Scaling] = {
    "llama3": Scaling(_llama3, ("factor", "low_factor", "high_factor", "original_length")),
    "linear": Scaling(_linear, ("factor",)),
    "dynamic": Scaling(_dynamic, ("factor", "original_length")),
    "yarn": Scaling(_yarn, (*_ATTENTION, "beta_fast", "beta_slow", "truncate", "score_scale")),
    "longrope": Scaling(_longrope, (*_ATTENTION, "short_factors", "long_factors")),
}


def unused(scaling: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of a `RopeScaling`, here a dictionary, that change nothing beside the others."""
    # Scaling by 1 is none, whatever its kind; the factors of single pairs need no common one.
    if scaling["factor"] == 1 and scaling["kind"] != "longrope":
        return tuple(name for name in scaling if name != "factor")
    uses = SCALINGS[scaling["kind"]].uses if scaling["kind"] in SCALINGS else tuple(scaling)
    # LongRoPE's factor is there for the attention's alone.
    if scaling["kind"] == "longrope" and scaling["attention_factor"]:
        uses = tuple(name for name in uses if name != "factor")
    return tuple(name for name in scaling if name not in ("kind", *uses))
