"""How far stated probabilities are from how often they come true, as functions of counts.

Confidences are counted in narrow bins, with the exact sums of each, so that parts of data add up:

    {"sure/0460": (0.4792, 1.0), "hits/0460": (1.0, 1.0)}  # one prediction of 0.4792, come true

`BINS` equal widths are made of whole narrow bins, which makes the expected calibration error exact;
bins of equal mass end at a narrow bin.
"""

import math
from dataclasses import dataclass

import numpy as np

from research.evals.evaluation import Totals

BINS = 15  # as arXiv:1706.04599
_NARROW = 64  # narrow bins of a bin


@dataclass(frozen=True)
class Bins:
    """Predictions by bin: the sum of their probabilities, how many came true, and how many there
    are, float64 [K] each, without empty bins, ascending."""

    sure_K: np.ndarray
    hits_K: np.ndarray
    count_K: np.ndarray


def count(sure: float, hit: float, prefix: str = "", wide: bool = False) -> Totals:
    """The totals of one prediction of probability `sure` that came true (1) or did not (0). `wide`
    ones are for bins of equal width alone and have fewer names."""
    number = min(int(sure * BINS * _NARROW), BINS * _NARROW - 1)
    number -= number % _NARROW if wide else 0
    return {
        f"{prefix}sure/{number:04d}": (sure, 1.0),
        f"{prefix}hits/{number:04d}": (float(hit), 1.0),
    }


def narrow(totals: Totals, prefix: str = "") -> tuple[np.ndarray, Bins]:
    """(numbers of the narrow bins [K], what they hold)."""
    start = f"{prefix}sure/"
    rows = sorted(
        (int(key[len(start) :]), sure, totals[f"{prefix}hits/{key[len(start) :]}"][0], number)
        for key, (sure, number) in totals.items()
        if key.startswith(start)
    )
    number_K, sure_K, hits_K, count_K = np.array(rows, np.float64).reshape(-1, 4).T
    return number_K.astype(int), Bins(sure_K, hits_K, count_K)


def equal_width(totals: Totals, prefix: str = "") -> Bins:
    """`BINS` bins of equal width."""
    number_K, bins = narrow(totals, prefix)
    return _grouped(bins, number_K // _NARROW)


def equal_mass(totals: Totals, prefix: str = "") -> Bins:
    """`BINS` bins of about as many predictions each."""
    _, bins = narrow(totals, prefix)
    # By the middle of a narrow bin's own ranks.
    middle_K = (np.cumsum(bins.count_K) - bins.count_K / 2) / max(bins.count_K.sum(), 1.0)
    return _grouped(bins, (middle_K * BINS).astype(int))


def _grouped(bins: Bins, group_K: np.ndarray) -> Bins:
    edges = np.flatnonzero(np.diff(group_K, prepend=-1))
    if not len(group_K):
        return bins
    parts = (np.add.reduceat(x, edges) for x in (bins.sure_K, bins.hits_K, bins.count_K))
    return Bins(*parts)


def calibration_error(bins: Bins) -> float:
    """The expected calibration error: the mean distance of a bin's mean probability from its share
    of hits, weighted by its predictions (arXiv:1706.04599, equation 3)."""
    return float(np.abs(bins.sure_K - bins.hits_K).sum() / bins.count_K.sum())


def error_by_chance(bins: Bins) -> float:
    """What `calibration_error` would be of perfectly calibrated predictions, by their number alone:
    the mean distance of a binomial share, as a normal one, from its mean. An error of a small set
    says nothing without it."""
    mean_K = bins.sure_K / bins.count_K
    spread_K = np.sqrt(2 / math.pi * mean_K * (1 - mean_K) / bins.count_K)
    return float(np.sum(spread_K * bins.count_K) / bins.count_K.sum())


def decomposition(bins: Bins, brier: float) -> dict[str, float]:
    """The Brier score as reliability - resolution + uncertainty (Murphy 1973), and `within`, what
    the spread of predictions within a bin adds; the four make up the score exactly."""
    share_K, mean_K = bins.hits_K / bins.count_K, bins.sure_K / bins.count_K
    weight_K, base = bins.count_K / bins.count_K.sum(), bins.hits_K.sum() / bins.count_K.sum()
    found = {
        "reliability": float(np.sum(weight_K * (mean_K - share_K) ** 2)),
        "resolution": float(np.sum(weight_K * (share_K - base) ** 2)),
        "uncertainty": float(base * (1 - base)),
    }
    without = found["reliability"] - found["resolution"] + found["uncertainty"]
    return {**found, "within": brier - without}
