"""What a request adds to the logits before anything else: OpenAI's `presence_penalty`,
`frequency_penalty` and `logit_bias`.

Letters: M rows whose next token is drawn, S tokens of a text, V vocabulary, A tokens with a bias.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from research.serve.refusal import Refused, field

BIASED = 300  # tokens: as many as OpenAI's API takes
NOBODY = -1  # no token, in rows with fewer


@dataclass(frozen=True)
class Penalties:
    """The logit of a token that was written c times gets -c * frequency, and -presence where c is
    not 0; those of the prompt do not count. `bias` is added to the logits of some tokens.

    ValueError for a number out of range, and a bias for more than `BIASED` tokens.
    """

    presence: float = 0.0
    frequency: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self):
        for name in ("presence", "frequency"):
            if not -2 <= getattr(self, name) <= 2:
                raise ValueError(f"{name}={getattr(self, name)} must be in [-2, 2] (0: off)")
        if len(self.bias) > BIASED:
            raise ValueError(f"a bias for {len(self.bias)} tokens is over {BIASED}; give fewer")
        for token, bias in self.bias:
            if token < 0 or not -100 <= bias <= 100:
                raise ValueError(f"a bias of {bias} for token {token} must be in [-100, 100]")


NONE = Penalties()


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["presence_M1", "frequency_M1", "prompt_M1", "ids_MA", "bias_MA"],
    meta_fields=[],
)
@dataclass(frozen=True)
class PenaltyRows:
    """The penalties of each row of a step; `prompt_M1` is the length of its prompt, behind which
    tokens count, and `bias_MA` what the tokens `ids_MA` get."""

    presence_M1: np.ndarray
    frequency_M1: np.ndarray
    prompt_M1: np.ndarray
    ids_MA: np.ndarray
    bias_MA: np.ndarray

    def put(self, at: int, penalties: Penalties, prompt: int) -> None:
        """Sets a row to the penalties of a text with a prompt of so many tokens."""
        self.presence_M1[at], self.frequency_M1[at] = penalties.presence, penalties.frequency
        self.prompt_M1[at] = prompt
        for number, (token, bias) in enumerate(penalties.bias):
            self.ids_MA[at, number], self.bias_MA[at, number] = token, bias


def blank(rows: int) -> PenaltyRows:
    """Rows without penalties."""
    return PenaltyRows(
        np.zeros((rows, 1), np.float32),
        np.zeros((rows, 1), np.float32),
        np.zeros((rows, 1), np.int32),
        np.full((rows, BIASED), NOBODY, np.int32),
        np.zeros((rows, BIASED), np.float32),
    )


def penalized(logits_MV: jax.Array, p: PenaltyRows, texts_MS: jax.Array) -> jax.Array:
    """The logits, float32, with the penalties. `texts_MS` are the tokens of each row's text, -1
    behind the end. What no row wants is not computed."""
    rows_M1 = jnp.arange(len(logits_MV))[:, None]

    def _add(ids_MA, added_MA, to_MV):
        # Out of range for no token, which "drop" leaves out: -1 would be the last one.
        ids_MA = jnp.where(ids_MA < 0, logits_MV.shape[1], ids_MA)
        return to_MV.at[rows_M1, ids_MA].add(added_MA, mode="drop")

    def _counted(logits_MV):
        written_MS = jnp.arange(texts_MS.shape[1])[None] >= p.prompt_M1
        count_MV = _add(jnp.where(written_MS, texts_MS, NOBODY), 1.0, jnp.zeros_like(logits_MV))
        return logits_MV - p.frequency_M1 * count_MV - p.presence_M1 * (count_MV > 0)

    counted = jnp.any(p.presence_M1 != 0) | jnp.any(p.frequency_M1 != 0)
    logits_MV = lax.cond(counted, _counted, lambda x_MV: x_MV, logits_MV)
    biased = partial(_add, p.ids_MA, p.bias_MA)
    return lax.cond(jnp.any(p.ids_MA >= 0), biased, lambda x_MV: x_MV, logits_MV)


def penalties_of(body: Mapping[str, Any], vocab_size: int) -> Penalties:
    """What a request asks for. `Refused` for what is wrong."""
    presence = field(body, "presence_penalty", "number", 0, -2, 2)
    frequency = field(body, "frequency_penalty", "number", 0, -2, 2)
    given = body.get("logit_bias")
    if given is None:
        given = {}
    if not isinstance(given, Mapping) or len(given) > BIASED:
        raise Refused(
            f"logit_bias must be an object from up to {BIASED} token ids to numbers",
            param="logit_bias",
        )
    bias = []
    for token in given:
        # Names are strings in JSON, so ids are spelt in digits.
        digits = token.isascii() and token.isdigit() and len(token) < 12
        if not digits or int(token) >= vocab_size:
            raise Refused(
                f"logit_bias has {token[:20]!r}, and must have ids in [0, {vocab_size})",
                param="logit_bias",
            )
        value = field({"logit_bias": given[token]}, "logit_bias", "number", 0, -100, 100)
        bias.append((int(token), float(value)))
    return Penalties(float(presence), float(frequency), tuple(bias))
