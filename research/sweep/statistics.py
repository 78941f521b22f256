"""Paired comparisons over seeds: what a sweep can say of a level, and what it cannot.

The unit of replication is the run. A level and the baseline share seeds, so their difference is
taken seed by seed, and the interval is that of Student's t for the mean of the differences. Three
things keep a sweep from finding what is not there:

  - no verdict below six seeds: an exact paired test of n seeds has no p-value below 2 ** (1 - n),
    so five can never reach 0.05, whatever is measured
  - p-values are corrected for the number of comparisons (Holm 1979, Scandinavian Journal of
    Statistics 6)
  - a run that diverged counts as the worst value of the sweep, and never drops out
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from scipy import stats

LEAST_SEEDS = 6
CONFIDENCE = 0.95
POWER = 0.8  # with which an effect is to be found (Cohen 1988, Statistical Power Analysis)
MOST_SEEDS = 100  # more are not advised

Pair = tuple[float, float]  # the metric at the level and in the baseline, of one seed
Name = TypeVar("Name")  # of a level


@dataclass(frozen=True)
class Comparison:
    """A level compared with the baseline.

    difference   mean over seeds of level minus baseline, in units of the metric
    low, high    95% confidence interval of the difference by Student's t; infinite for one seed
    p            two-sided p-value of that test, not corrected; `corrected` is by Holm
    sign_flip    p-value of the exact test that flips signs of differences, as a check without any
                 assumption of a distribution
    detectable   minimum detectable effect: the difference that so many seeds find with a
                 probability of 80% (two-sided at 5%)
    enough       seeds with which a difference as large as this one would be found so, at least six
    correlation  of level and baseline over seeds, which is what pairing gains; None where unknown
    verdict      "better", "worse", "no evidence" or "needs N more seeds"
    """

    seeds: int
    difference: float
    low: float
    high: float
    p: float
    sign_flip: float
    detectable: float
    enough: int
    correlation: float | None
    corrected: float = 1.0
    verdict: str = ""


def judge(
    pairs: Mapping[Name, Sequence[Pair]], better: str, others: int = 0
) -> dict[Name, Comparison]:
    """The comparison of each level by name, from its pairs, one for each seed.

    better   "lower" or "higher" values of the metric
    others   further levels that were tried and have no pairs, which count for the correction

    The levels are one family for Holm's correction. ValueError for a level without pairs or with a
    value that is not finite.
    """
    found = {name: compare(values) for name, values in pairs.items()}
    corrected = dict(zip(found, holm([*(one.p for one in found.values()), *[1.0] * others])))
    return {
        name: replace(
            one, corrected=corrected[name], verdict=_verdict(one, corrected[name], better)
        )
        for name, one in found.items()
    }


def compare(pairs: Sequence[Pair]) -> Comparison:
    """The comparison of one level by itself, without a correction or a verdict."""
    values = np.asarray(pairs, float).reshape(-1, 2)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"pairs of finite numbers are compared, got {list(pairs)}")
    differences = values[:, 0] - values[:, 1]
    n, mean = len(differences), float(differences.mean())
    if n == 1:
        nothing = math.inf
        return Comparison(1, mean, -nothing, nothing, 1.0, 1.0, nothing, LEAST_SEEDS, None)
    deviation = float(differences.std(ddof=1))
    error = deviation / math.sqrt(n)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    return Comparison(
        n,
        mean,
        mean - reach,
        mean + reach,
        _p(mean, error, n),
        sign_flip(differences),
        detectable(deviation, n),
        seeds_for(abs(mean), deviation),
        _correlation(values),
    )


def holm(ps: Sequence[float]) -> list[float]:
    """P-values corrected by Holm's step-down method, in the order given."""
    order = np.argsort(ps, kind="stable")
    corrected, highest = [1.0] * len(ps), 0.0
    for rank, index in enumerate(order):
        # Never below that of a smaller p-value, so that verdicts keep the order.
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = highest
    return corrected


def sign_flip(differences: np.ndarray) -> float:
    """Two-sided p-value of the mean under flips of the differences' signs: exact for up to 12
    seeds, from 4,095 fixed random flips beyond."""
    n = len(differences)
    if n <= 12:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1, 1], (4095, n))
        signs = np.concatenate([np.ones((1, n)), signs])  # as observed
    means = np.abs(signs @ differences)
    # A flip that only rounds differently is as extreme as what was observed.
    return float(np.mean(means >= abs(differences.sum()) * (1 - 1e-12)))


def detectable(deviation: float, seeds: int) -> float:
    """The minimum detectable effect of `seeds` differences of this standard deviation."""
    return float(_reach(seeds)) * deviation


def seeds_for(effect: float, deviation: float) -> int:
    """The least number of seeds, from 6 to 100, with which `effect` is detectable; 100 also where
    more would be needed."""
    found = np.flatnonzero(_reaches() * deviation <= effect)
    return LEAST_SEEDS + int(found[0]) if len(found) else MOST_SEEDS


@functools.cache
def _reaches() -> np.ndarray:
    """`_reach` of 6 to 99 seeds."""
    return _reach(np.arange(LEAST_SEEDS, MOST_SEEDS))


def _reach(seeds):
    """The minimum detectable effect in standard deviations of a difference."""
    degrees = seeds - 1
    quantiles = stats.t.ppf((1 + CONFIDENCE) / 2, degrees) + stats.t.ppf(POWER, degrees)
    return quantiles / np.sqrt(seeds)


def _p(mean: float, error: float, n: int) -> float:
    if not error:  # all differences are equal
        return 1.0 if not mean else 0.0
    return float(2 * stats.t.sf(abs(mean) / error, n - 1))


def _correlation(values: np.ndarray) -> float | None:
    deviations = values.std(axis=0)
    if len(values) < 3 or not deviations.all():
        return None
    return float(np.corrcoef(values.T)[0, 1])


def _verdict(one: Comparison, corrected: float, better: str) -> str:
    if one.seeds < LEAST_SEEDS:
        # What is needed for a difference that would take more than 100 seeds is not known well
        # enough from a few; then it is what a verdict of any kind needs.
        wanted = one.enough if one.enough < MOST_SEEDS else LEAST_SEEDS
        more = wanted - one.seeds
        return f"needs {more} more seed{'s' if more > 1 else ''}"
    if corrected >= 1 - CONFIDENCE:
        return "no evidence"
    return "better" if (one.difference < 0) == (better == "lower") else "worse"
