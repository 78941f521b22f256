"""Losses of preference pairs, each a function of what policy and reference say of two answers.

An answer's log-probability is the sum of log p(token) in nats over its tokens. What the policy has
gained over the reference on the chosen answer, beta (log p - log p_ref), is its reward, and the
margin is the chosen answer's reward minus the rejected one's. `LOSSES` is the table. Its values
equal TRL 1.16's but for "bco_pair", whose level is the batch's and not a running mean
(tests/objectives/test_preference_losses.py).

    losses_N = preference_loss("ipo", said, PreferenceSettings(beta=0.1))
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, relu, sigmoid


class Said(NamedTuple):
    """Log-probabilities of N pairs of answers in nats, float32 [N], and the answers' tokens [N].

    The `reference_*` are 0 for the losses that need no reference. `weights` are 1 for a pair and 0
    for a row that only fills up the batch.
    """

    chosen: jax.Array
    rejected: jax.Array
    reference_chosen: jax.Array
    reference_rejected: jax.Array
    chosen_tokens: jax.Array
    rejected_tokens: jax.Array
    weights: jax.Array


@dataclass(frozen=True)
class PreferenceSettings:
    """What the losses are weighed by.

    beta             how much a log-probability ratio counts; larger stays nearer the reference
    label_smoothing  share of the pairs taken to be labelled the wrong way round
    gamma            SimPO: the margin that a pair should have
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    gamma: float = 0.5


Loss = Callable[[Said, PreferenceSettings], jax.Array]


@dataclass(frozen=True)
class PreferenceLoss:
    """A row of the table.

    loss      (said, settings) -> the loss of each pair in nats, [N]
    source    where it is from
    reference whether it compares with a reference
    likely    whether -log p of the chosen answer, averaged over its tokens, is added to it (TRL
              averages over the tokens of the batch)
    smoothed  whether it reads `label_smoothing`
    batch     whether a pair's loss depends on the other pairs of the batch
    """

    loss: Loss
    source: str
    reference: bool = True
    likely: bool = False
    smoothed: bool = False
    batch: bool = False


def preference_loss(name: str, said: Said, settings: PreferenceSettings) -> jax.Array:
    """The loss of each pair, [N], without the part that `likely` speaks of."""
    return LOSSES[name].loss(said, settings)


def rewards(said: Said, beta: float) -> tuple[jax.Array, jax.Array]:
    """The implicit rewards of the chosen and the rejected answers (arXiv:2305.18290, section 5)."""
    return (
        beta * (said.chosen - said.reference_chosen),
        beta * (said.rejected - said.reference_rejected),
    )


def averaged(said: Said) -> Said:
    """The same with log-probabilities averaged over the tokens of each answer."""
    chosen, rejected = jnp.maximum(said.chosen_tokens, 1), jnp.maximum(said.rejected_tokens, 1)
    return said._replace(
        chosen=said.chosen / chosen,
        rejected=said.rejected / rejected,
        reference_chosen=said.reference_chosen / chosen,
        reference_rejected=said.reference_rejected / rejected,
    )


def _smoothed(margin: jax.Array, share: float) -> jax.Array:
    """-log of the probability that the chosen answer wins, if `share` of the labels are wrong."""
    return -(1 - share) * log_sigmoid(margin) - share * log_sigmoid(-margin)


def _margin(said: Said, beta: float) -> jax.Array:
    chosen, rejected = rewards(said, beta)
    return chosen - rejected


def _sigmoid(said: Said, s: PreferenceSettings) -> jax.Array:
    return _smoothed(_margin(said, s.beta), s.label_smoothing)


def _sigmoid_norm(said: Said, s: PreferenceSettings) -> jax.Array:
    return _smoothed(_margin(averaged(said), s.beta), s.label_smoothing)


def _robust(said: Said, s: PreferenceSettings) -> jax.Array:
    margin, share = _margin(said, s.beta), s.label_smoothing
    wrong = (1 - share) * log_sigmoid(margin) - share * log_sigmoid(-margin)
    return -wrong / (1 - 2 * share)


def _hinge(said: Said, s: PreferenceSettings) -> jax.Array:
    return relu(1 - _margin(said, s.beta))


def _ipo(said: Said, s: PreferenceSettings) -> jax.Array:
    return (_margin(averaged(said), 1.0) - 1 / (2 * s.beta)) ** 2


def _exo_pair(said: Said, s: PreferenceSettings) -> jax.Array:
    # The reverse KL from labels that are never quite sure: with a share of 0 it would be infinite.
    margin, share = _margin(said, s.beta), max(s.label_smoothing, 1e-3)
    won = sigmoid(margin) * (log_sigmoid(margin) - math.log1p(-share))
    return won + sigmoid(-margin) * (log_sigmoid(-margin) - math.log(share))


def _nca_pair(said: Said, s: PreferenceSettings) -> jax.Array:
    chosen, rejected = rewards(said, s.beta)
    return -log_sigmoid(chosen) - 0.5 * (log_sigmoid(-chosen) + log_sigmoid(-rejected))


def _bco_pair(said: Said, s: PreferenceSettings) -> jax.Array:
    chosen, rejected = rewards(said, s.beta)
    # Of this batch; TRL's runs along with training.
    level = jax.lax.stop_gradient(_mean(chosen + rejected, said.weights) / 2)
    return -log_sigmoid(chosen - level) - log_sigmoid(level - rejected)


def _sppo_hard(said: Said, s: PreferenceSettings) -> jax.Array:
    chosen, rejected = rewards(said, 1.0)
    return (chosen - 0.5 / s.beta) ** 2 + (rejected + 0.5 / s.beta) ** 2


def _aot(said: Said, s: PreferenceSettings) -> jax.Array:
    ours = _sorted(said.chosen - said.rejected, said.weights)
    theirs = _sorted(said.reference_chosen - said.reference_rejected, said.weights)
    return _smoothed(s.beta * (ours - theirs), s.label_smoothing)


def _aot_unpaired(said: Said, s: PreferenceSettings) -> jax.Array:
    chosen, rejected = (_sorted(one, said.weights) for one in rewards(said, 1.0))
    return _smoothed(s.beta * (chosen - rejected), s.label_smoothing)


def _apo_zero(said: Said, s: PreferenceSettings) -> jax.Array:
    chosen, rejected = rewards(said, s.beta)
    return 1 - sigmoid(chosen) + sigmoid(rejected)


def _apo_down(said: Said, s: PreferenceSettings) -> jax.Array:
    chosen, rejected = rewards(said, s.beta)
    return sigmoid(chosen) + 1 - sigmoid(chosen - rejected)


def _discopop(said: Said, s: PreferenceSettings) -> jax.Array:
    margin = _margin(said, s.beta)
    blend = sigmoid(margin / 0.05)  # the temperature that its search found
    return -log_sigmoid(margin) * (1 - blend) + jnp.exp(-margin) * blend


def _simpo(said: Said, s: PreferenceSettings) -> jax.Array:
    # gamma is part of the margin of averages, so it is not divided by any length.
    return _smoothed(_margin(averaged(said), s.beta) - s.gamma, s.label_smoothing)


def _orpo(said: Said, s: PreferenceSettings) -> jax.Array:
    mean = averaged(said)
    odds = (mean.chosen - mean.rejected) - (_log1mexp(mean.chosen) - _log1mexp(mean.rejected))
    return -s.beta * log_sigmoid(odds)


def _log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) for x < 0, near 0 too."""
    x = jnp.minimum(x, -1e-7)  # an answer that is certain has odds without end
    near = x > -math.log(2)
    # Each branch gets an argument of its own: the gradient of the other would be NaN.
    return jnp.where(
        near,
        jnp.log(-jnp.expm1(jnp.where(near, x, -1.0))),
        jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))),
    )


def _mean(x: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.sum(x * weights) / jnp.maximum(jnp.sum(weights), 1)


def _sorted(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Ascending, rows of weight 0 as they are in their places: pairs alone are compared in order of
    size."""
    order = jnp.argsort(jnp.where(weights > 0, x, jnp.inf))
    places = jnp.argsort(jnp.where(weights > 0, jnp.arange(len(x)), len(x)))
    return jnp.zeros_like(x).at[places].set(x[order])


LOSSES: dict[str, PreferenceLoss] = {
    "sigmoid": PreferenceLoss(_sigmoid, "DPO, arXiv:2305.18290, eq. 7", smoothed=True),
    "sigmoid_norm": PreferenceLoss(
        _sigmoid_norm, "DPO of averages, arXiv:2411.15124", smoothed=True
    ),
    "robust": PreferenceLoss(_robust, "robust DPO, arXiv:2403.00409", smoothed=True),
    "hinge": PreferenceLoss(_hinge, "SLiC, arXiv:2305.10425"),
    "ipo": PreferenceLoss(_ipo, "IPO, arXiv:2310.12036, of averages"),
    "exo_pair": PreferenceLoss(_exo_pair, "EXO, arXiv:2402.00856", smoothed=True),
    "nca_pair": PreferenceLoss(_nca_pair, "NCA, arXiv:2402.05369"),
    "bco_pair": PreferenceLoss(_bco_pair, "BCO, arXiv:2404.04656", batch=True),
    "sppo_hard": PreferenceLoss(_sppo_hard, "SPPO, arXiv:2405.00675"),
    "aot": PreferenceLoss(_aot, "AOT, arXiv:2406.05882", smoothed=True, batch=True),
    "aot_unpaired": PreferenceLoss(
        _aot_unpaired, "AOT, arXiv:2406.05882", smoothed=True, batch=True
    ),
    "apo_zero": PreferenceLoss(_apo_zero, "APO-zero, arXiv:2408.06266"),
    "apo_down": PreferenceLoss(_apo_down, "APO-down, arXiv:2408.06266"),
    "discopop": PreferenceLoss(_discopop, "DiscoPOP, arXiv:2406.08414"),
    "simpo": PreferenceLoss(_simpo, "SimPO, arXiv:2405.14734", reference=False, smoothed=True),
    "cpo": PreferenceLoss(
        _sigmoid, "CPO, arXiv:2401.08417", reference=False, likely=True, smoothed=True
    ),
    "orpo": PreferenceLoss(_orpo, "ORPO, arXiv:2403.07691", reference=False, likely=True),
}


class Judged(NamedTuple):
    """Log-probabilities in nats of N answers of which each was liked or not, [N].

    answer     log p of the answer less the reference's
    other      the same of an answer to another prompt
    liked      True for an answer that was liked
    weights    1 for an answer and 0 for a row that only fills up the batch
    """

    answer: jax.Array
    other: jax.Array
    liked: jax.Array
    weights: jax.Array


def kto(judged: Judged, beta: float) -> jax.Array:
    """KTO (arXiv:2402.01306): a liked answer is to gain more over the reference than answers
    gain on the average, an answer that was not liked less."""
    # An estimate of KL(policy, reference), which is never negative; no gradient passes through it.
    level = jax.lax.stop_gradient(jnp.maximum(_mean(judged.other, judged.weights), 0.0))
    sign = jnp.where(judged.liked, 1.0, -1.0)
    return 1 - sigmoid(sign * beta * (judged.answer - level))


def apo_zero_unpaired(judged: Judged, beta: float) -> jax.Array:
    """APO-zero without pairs (arXiv:2408.06266): as KTO measured from the reference."""
    return 1 - sigmoid(jnp.where(judged.liked, 1.0, -1.0) * beta * judged.answer)


UNPAIRED: dict[str, Callable[[Judged, float], jax.Array]] = {
    "kto": kto,
    "apo_zero_unpaired": apo_zero_unpaired,
}
