"""Losses of policy gradients on sampled texts, by name: what a token costs, and how tokens are
averaged.

With the log-ratio r = log p(token) - log p_sampled(token), ratio = exp(r) and an advantage A:

    clip   -min(ratio A, clip(ratio, 1 - low, 1 + high) A)      PPO, arXiv:1707.06347, equation 7
    cispo  -stop_gradient(min(ratio, high)) A log p             arXiv:2506.13585, equation 4
    sapo   -sigmoid(tau (ratio - 1)) 4 / tau A                  arXiv:2511.20347

Letters: B rows, T tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

# Temperatures of SAPO's gate for positive and negative advantages, those of the paper.
SAPO_POSITIVE, SAPO_NEGATIVE = 1.0, 1.05


class Clip(NamedTuple):
    """Where a ratio of probabilities is cut: below 1 - low, above 1 + high. `most` bounds the
    ratio where the advantage is negative too (arXiv:2505.07291, two-sided clipping); 0 does not."""

    low: float
    high: float
    most: float = 0.0


# (log p, log-ratio, advantage, bounds) -> cost of each token, all [B, T]; the
# log-ratio is that of the token, or the mean of its text.
Surrogate = Callable[[jax.Array, jax.Array, jax.Array, Clip], jax.Array]
Cut = Callable[[jax.Array, jax.Array, Clip], jax.Array]


def clip_surrogate(
    logp_BT: jax.Array, log_ratio_BT: jax.Array, advantage_BT: jax.Array, clip: Clip
) -> jax.Array:
    """PPO's clipped cost of each token."""
    ratio_BT = jnp.exp(log_ratio_BT)
    cut_BT = jnp.clip(ratio_BT, 1 - clip.low, 1 + clip.high)
    if clip.most:
        ratio_BT = jnp.minimum(ratio_BT, clip.most)
    return -jnp.minimum(ratio_BT * advantage_BT, cut_BT * advantage_BT)


def cispo_surrogate(
    logp_BT: jax.Array, log_ratio_BT: jax.Array, advantage_BT: jax.Array, clip: Clip
) -> jax.Array:
    """REINFORCE with a weight that is cut at `clip.high` and has no gradient: no token's gradient
    vanishes."""
    weight_BT = stop_gradient(jnp.minimum(jnp.exp(log_ratio_BT), clip.high))
    return -weight_BT * advantage_BT * logp_BT


def sapo_surrogate(
    logp_BT: jax.Array, log_ratio_BT: jax.Array, advantage_BT: jax.Array, clip: Clip
) -> jax.Array:
    """A soft gate in place of the cut, steeper for negative advantages."""
    tau_BT = jnp.where(advantage_BT > 0, SAPO_POSITIVE, SAPO_NEGATIVE)
    gate_BT = jax.nn.sigmoid(tau_BT * (jnp.exp(log_ratio_BT) - 1)) * 4 / tau_BT
    return -gate_BT * advantage_BT


def beyond_clip(log_ratio_BT: jax.Array, advantage_BT: jax.Array, clip: Clip) -> jax.Array:
    """True for tokens whose ratio is beyond the bound that their advantage pushes it to: under
    `clip_surrogate` these have no gradient."""
    ratio_BT = jnp.exp(log_ratio_BT)
    above_BT = (ratio_BT > 1 + clip.high) & (advantage_BT > 0)
    return above_BT | ((ratio_BT < 1 - clip.low) & (advantage_BT < 0))


def beyond_weight(log_ratio_BT: jax.Array, advantage_BT: jax.Array, clip: Clip) -> jax.Array:
    """True for tokens whose weight `cispo_surrogate` cuts."""
    return jnp.exp(log_ratio_BT) > clip.high


def never(log_ratio_BT: jax.Array, advantage_BT: jax.Array, clip: Clip) -> jax.Array:
    """False for all tokens: a soft gate cuts none."""
    return jnp.zeros_like(log_ratio_BT, bool)


@dataclass(frozen=True)
class PolicyLoss:
    """A row of `LOSSES`.

    surrogate    the cost of a token
    whole_texts  the log-ratio is the mean over a text, one for all its tokens
    average      how tokens are averaged, a key of `AVERAGES`
    advantage    how rewards become advantages, a key of `research.objectives.advantages.ADVANTAGES`
    clip         the bounds of its paper
    cut          which tokens the bounds cut, for the share that is logged
    """

    surrogate: Surrogate
    average: str
    advantage: str = "group"
    clip: Clip = Clip(0.2, 0.2)
    whole_texts: bool = False
    cut: Cut = beyond_clip


# What the mean of a loss is over; `research.objectives.policy` counts so.
AVERAGES = {
    "token": "tokens of all texts",
    "text": "texts, each the mean of its tokens",
    "prompt": "prompts, each the mean over the tokens of its texts",
    "constant": "texts, each the sum of its tokens over the most tokens there may be",
}

# One row a loss.
LOSSES: dict[str, PolicyLoss] = {
    # arXiv:2402.03300, equation 3.
    "grpo": PolicyLoss(clip_surrogate, "text"),
    # arXiv:2503.14476: a higher upper bound, the mean over tokens.
    "dapo": PolicyLoss(clip_surrogate, "token", clip=Clip(0.2, 0.28)),
    # The same mean with PPO's bounds. (Where others take it over a micro-batch, ours is over all.)
    "bnpo": PolicyLoss(clip_surrogate, "token"),
    # arXiv:2503.20783: neither the length of a text nor the spread of a group weighs.
    "dr_grpo": PolicyLoss(clip_surrogate, "constant", advantage="centred"),
    # arXiv:2507.18071: the ratio of a whole text, with the bounds of section 5.1.
    "gspo": PolicyLoss(clip_surrogate, "text", clip=Clip(3e-4, 4e-4), whole_texts=True),
    # The bound, the advantages and the mean over prompts are those of arXiv:2510.13786.
    "cispo": PolicyLoss(
        cispo_surrogate, "prompt", advantage="batch", clip=Clip(0.0, 5.0), cut=beyond_weight
    ),
    "sapo": PolicyLoss(sapo_surrogate, "text", cut=never),
    # arXiv:2402.14740: REINFORCE, whose baseline of a text are the other texts of its prompt.
    "rloo": PolicyLoss(clip_surrogate, "text", advantage="leave_one_out"),
    # arXiv:1707.06347 with the advantages of arXiv:1506.02438: a value head says what to expect.
    "ppo": PolicyLoss(clip_surrogate, "token", advantage="gae"),
}


def k3(logp_BT: jax.Array, reference_BT: jax.Array) -> jax.Array:
    """The estimate exp(d) - d - 1 with d = reference - log p of the Kullback-Leibler divergence
    from the reference, for tokens drawn from p: unbiased and never negative
    (joschu.net/blog/kl-approx.html)."""
    d_BT = reference_BT - logp_BT
    return jnp.exp(d_BT) - d_BT - 1


def text_mean(x_BT: jax.Array, weights_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """For each token the weighted mean over the tokens of its segment in its row, [B, T]."""
    # A product with [B, T, T] and no scatter: rows may be split over devices, and a few long texts
    # of a row need no more room than their attention.
    same_BTS = (segments_BT[:, :, None] == segments_BT[:, None, :]).astype(jnp.float32)
    same_BTS *= weights_BT[:, None, :]
    total_BT = jnp.sum(same_BTS * x_BT[:, None, :], axis=2)
    return total_BT / jnp.maximum(jnp.sum(same_BTS, axis=2), 1.0)
