"""How well a score tells right answers from wrong ones: the area under the ROC curve, and what is
left of the errors when the least certain answers are withheld.

Both are functions of counts, so that parts of data add up: an item's score is a total of its own,
named by the score, whose sum says whether the answer was right.

    {"auroc/margin/0.731": (1.0, 1.0)}  # one item with this margin, and it is right
"""

import math

import numpy as np

from research.evals.evaluation import Totals

_PREFIX = "auroc/"
# Items whose scores differ by less are ties. More digits would give every item of a large set a
# total of its own, which a bootstrap would carry along a thousand times.
_DIGITS = 3


def tally(name: str, score: float, right: float) -> Totals:
    """The total of one item: how sure it is by the score `name`, and 1 if it is right, else 0."""
    # -0.0 and 0.0 are one score.
    return {f"{_PREFIX}{name}/{float(f'{score:.{_DIGITS}g}') + 0.0!r}": (float(right), 1.0)}


def tallied(totals: Totals, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scores ascending [K], right ones of each [K], items of each [K]), float64."""
    start = f"{_PREFIX}{name}/"
    rows = [
        (float(key[len(start) :]), right, count)
        for key, (right, count) in totals.items()
        if key.startswith(start)
    ]
    scores_K, right_K, count_K = np.array(sorted(rows), np.float64).reshape(-1, 3).T
    return scores_K, right_K, count_K


def auroc(totals: Totals, name: str) -> float:
    """The chance that a right item has a higher score than a wrong one, a tie counting half
    (Hanley and McNeil 1982); 0.5 of a score that knows nothing, NaN if all are right or none is."""
    _, right_K, count_K = tallied(totals, name)
    wrong_K = count_K - right_K
    pairs = right_K.sum() * wrong_K.sum()
    if not pairs:
        return math.nan
    below_K = np.cumsum(wrong_K) - wrong_K
    return float(np.sum(right_K * (below_K + wrong_K / 2)) / pairs)


def areas(totals: Totals) -> dict[str, float]:
    """{"auroc_NAME": auroc} of every score that was tallied; a score without both right and wrong
    items is left out."""
    names = dict.fromkeys(key.split("/")[1] for key in totals if key.startswith(_PREFIX))
    found = {f"auroc_{name}": auroc(totals, name) for name in names}
    return {name: value for name, value in found.items() if not math.isnan(value)}


def risk_at(totals: Totals, name: str, coverage: float) -> float:
    """The share of errors among the `coverage` of items with the highest scores, of ties the mean
    over their orders."""
    return float(_risks(totals, name, np.array([coverage]))[0])


def risk_coverage_area(totals: Totals, name: str) -> float:
    """The mean of `risk_at` over coverages (AURC, arXiv:1805.08206, section 2); the error rate of a
    score that knows nothing."""
    return float(_risks(totals, name, (np.arange(100) + 0.5) / 100).mean())


def _risks(totals: Totals, name: str, coverage_C: np.ndarray) -> np.ndarray:
    """`risk_at` of each coverage, float64 [C]; NaN without items."""
    _, right_K, count_K = (part[::-1] for part in tallied(totals, name))
    if not count_K.size:
        return np.full(len(coverage_C), math.nan)
    wanted_C = coverage_C * count_K.sum()
    # Of the ties at the edge as many as are still wanted.
    taken_CK = np.clip(wanted_C[:, None] - (np.cumsum(count_K) - count_K), 0, count_K)
    return taken_CK @ (1 - right_K / count_K) / wanted_C
