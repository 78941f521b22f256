"""The scaling law L(N, D) = E + A / N^alpha + B / D^beta of the loss in parameters N and training
tokens D, fitted to runs (Hoffmann et al. 2022, arXiv:2203.15556, approach 3).

The objective is the sum over runs of the Huber loss, delta 1e-3, of the error of log L, whose
model is the log-sum-exp of three terms. It is minimised from hundreds of starts. The sum and not
the mean: with the mean the gradients of Hoffmann et al. fell below the optimizer's tolerance before
it was done (Besiroglu et al. 2024, arXiv:2404.10102). Intervals come from a bootstrap over runs.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NAMES = ("E", "A", "B", "alpha", "beta")
DELTA = 1e-3
RESAMPLES = 300
CONFIDENCE = 0.9
# Of log E, log A, log B, alpha, beta: the grid of Hoffmann et al. where laws of language models
# have been found: 432 starts.
GRID = (
    (-1.0, 0.0, 1.0),
    (0.0, 5.0, 10.0, 15.0),
    (0.0, 5.0, 10.0, 15.0),
    (0.2, 0.6, 1.0),
    (0.2, 0.6, 1.0),
)
STEPS = 120  # at most; a fit ends in about 40
AHEAD = 24  # starts that are followed to their end
_TINY = 1e-8  # relative improvement at which a fit has ended


@dataclass(frozen=True)
class Law:
    """A fitted law.

    constants   E, A, B, alpha, beta by name
    intervals   (low, high) of each, of which all five together hold with 90%
    resampled   (resamples, 5) fits of the bootstrap: log E, log A, log B, alpha, beta
    """

    constants: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    resampled: np.ndarray

    def loss(self, parameters: float, tokens: float) -> float:
        """The loss that the law predicts."""
        theta = _theta(self.constants)
        return float(np.exp(_log_loss(theta[None], np.log([parameters]), np.log([tokens])))[0, 0])

    def interval(self, parameters: float, tokens: float) -> tuple[float, float]:
        """The 90% interval of `loss` by the bootstrap."""
        logs = _log_loss(self.resampled, np.log([parameters]), np.log([tokens]))[:, 0]
        tail = (1 - CONFIDENCE) / 2
        return tuple(float(x) for x in np.exp(np.quantile(logs, [tail, 1 - tail])))


def fit(
    parameters: Sequence[float],
    tokens: Sequence[float],
    losses: Sequence[float],
    resamples: int = RESAMPLES,
) -> Law:
    """The law of runs. ValueError for fewer than six runs, or for sizes or token counts that are
    all the same, which leave a term open."""
    n, d, l = (np.log(np.asarray(one, float)) for one in (parameters, tokens, losses))
    if len(l) < len(NAMES) + 1 or len(set(n)) < 3 or len(set(d)) < 3:
        raise ValueError(
            f"{len(l)} runs of {len(set(n))} sizes and {len(set(d))} numbers of tokens do not fix "
            "five constants; give at least six runs of three sizes and three numbers of tokens"
        )
    starts = np.array(list(itertools.product(*GRID)))
    once = np.ones((len(starts), len(l)))
    # A few steps tell which starts are on the way to the lowest minimum.
    found, cost = _minimise(starts, once, n, d, l, 25)
    ahead = np.argsort(cost)[:AHEAD]
    found, cost = _minimise(found[ahead], once[:AHEAD], n, d, l)
    best = found[np.argmin(cost)]
    # Each resample counts some runs several times and others not at all.
    draws = np.random.default_rng(0).multinomial(len(l), np.full(len(l), 1 / len(l)), resamples)
    fits, _ = _minimise(np.tile(best, (resamples, 1)), draws.astype(float), n, d, l)
    constants = dict(zip(NAMES, _values(best[None])[0].tolist()))
    return Law(constants, _intervals(best, fits), fits)


def _intervals(best: np.ndarray, fits: np.ndarray) -> dict[str, tuple[float, float]]:
    """Intervals that hold for all constants together: the largest of the five errors, each in
    robust standard deviations, is below the factor in 90% of the resamples. E, A and B have theirs
    on a logarithmic scale."""
    errors = fits - best
    # Where an exponent is poorly fixed a few resamples run away, so quantiles and no moments.
    scale = np.quantile(np.abs(errors), 0.6827, axis=0) + 1e-12
    factor = np.quantile(np.max(np.abs(errors) / scale, axis=1), CONFIDENCE)
    ends = _values(np.stack([best - factor * scale, best + factor * scale]))
    return {name: (float(low), float(high)) for name, low, high in zip(NAMES, *ends)}


def _minimise(
    theta_SP: np.ndarray,
    weights_SR: np.ndarray,
    n_R: np.ndarray,
    d_R: np.ndarray,
    l_R: np.ndarray,
    steps: int = STEPS,
) -> tuple[np.ndarray, np.ndarray]:
    """(minima, their costs) from S starts at once, each with weights of the R runs, by Levenberg's
    and Marquardt's method with the weights of Huber's loss."""
    theta, damping = theta_SP.copy(), np.full(len(theta_SP), 1e-2)
    error, slopes = _errors(theta, n_R, d_R, l_R)
    cost = _cost(error, weights_SR)
    for _ in range(steps):
        robust = weights_SR * np.minimum(1.0, DELTA / np.maximum(np.abs(error), 1e-300))
        gradient = np.einsum("srp,sr->sp", slopes, robust * error)
        curvature = np.einsum("srp,sr,srq->spq", slopes, robust, slopes)
        diagonal = np.einsum("spp->sp", curvature)
        damped = curvature + np.einsum("sp,pq->spq", damping[:, None] * (diagonal + 1e-12), _EYE)
        step = np.linalg.solve(damped + 1e-14 * _EYE, gradient[..., None])[..., 0]
        tried = theta - np.clip(step, -2.0, 2.0)
        new_error, new_slopes = _errors(tried, n_R, d_R, l_R)
        new_cost = _cost(new_error, weights_SR)
        better = new_cost < cost
        done = (cost - new_cost) <= _TINY * cost
        theta = np.where(better[:, None], tried, theta)
        error = np.where(better[:, None], new_error, error)
        slopes = np.where(better[:, None, None], new_slopes, slopes)
        cost = np.where(better, new_cost, cost)
        damping = np.clip(np.where(better, damping / 5, damping * 4), 1e-9, 1e9)
        if np.all(done & (better | (damping >= 1e6))):
            break
    return theta, cost


_EYE = np.eye(len(NAMES))


def _errors(theta_SP, n_R, d_R, l_R):
    """(errors of log L, their derivatives by the constants)."""
    terms = _terms(theta_SP, n_R, d_R)
    top = terms.max(axis=0)
    parts = np.exp(terms - top)
    total = parts.sum(axis=0)
    e, a, b = parts / total
    slopes = np.stack([e, a, b, -a * n_R, -b * d_R], axis=-1)
    return top + np.log(total) - l_R, slopes


def _terms(theta_SP, n_R, d_R):
    """Logarithms of the three terms of the loss."""
    e, a, b, alpha, beta = (column[:, None] for column in theta_SP.T)
    return np.stack([e + 0 * n_R, a - alpha * n_R, b - beta * d_R])


def _log_loss(theta_SP, n_R, d_R):
    return np.logaddexp.reduce(_terms(theta_SP, n_R, d_R))


def _cost(error_SR, weights_SR):
    """The weighted sum of Huber's loss."""
    size = np.abs(error_SR)
    huber = np.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2))
    return np.sum(weights_SR * huber, axis=1)


def _values(theta_SP: np.ndarray) -> np.ndarray:
    """E, A and B from their logarithms."""
    return np.concatenate([np.exp(theta_SP[:, :3]), theta_SP[:, 3:]], axis=1)


def _theta(constants: dict[str, float]) -> np.ndarray:
    values = np.array([constants[name] for name in NAMES])
    return np.concatenate([np.log(values[:3]), values[3:]])
