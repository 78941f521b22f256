"""Intervals of measured numbers, 95% unless said otherwise: of shares, of means, of any function of
sums, and of the difference of two models on the same items.

Each is a pair (low, high). N counts items, which are taken as independent draws: the interval says
what other items of the kind would have given, and nothing of another training run.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

Interval = tuple[float, float]

_Z = 1.959964  # of a normal distribution, 95% lie within so many standard deviations
RESAMPLES = 1000  # of a bootstrap: its ends are then known to about a twentieth of their distance


def wilson(right: float, count: int) -> Interval:
    """The interval of a share of which `right` of `count` independent trials were hits (Wilson
    1927). Unlike the share plus or minus two standard errors it stays within [0, 1] and has a width
    at 0 and 1, too.

    >>> tuple(round(end, 3) for end in wilson(60, 60))
    (0.94, 1.0)
    """
    share, z2 = right / count, _Z**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    # Rounding must not leave the share itself out.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def student(values_N: Sequence[float], level: float = 0.95) -> Interval:
    """The interval of the mean of values that are about normal, or many (Student 1908).

    Of paired values, such as differences over seeds, give the differences. ValueError for fewer
    than two.

    >>> tuple(round(end, 2) for end in student([1.0, 2.0, 3.0]))
    (-0.48, 4.48)
    """
    # With JAX's own requirements; it takes a moment to import, which training need not wait for.
    from scipy.special import stdtrit

    values_N = np.asarray(values_N, np.float64)
    if len(values_N) < 2:
        raise ValueError(f"{len(values_N)} values have no interval; give two or more")
    mean, error = float(values_N.mean()), float(values_N.std(ddof=1)) / math.sqrt(len(values_N))
    half = float(stdtrit(len(values_N) - 1, (1 + level) / 2)) * error
    return mean - half, mean + half


def newcombe(right_N: Sequence[float], other_N: Sequence[float]) -> Interval:
    """The interval of the difference of two shares over the same N items, hits being 1 and misses 0
    (Newcombe 1998, Statistics in Medicine 17:2635, method 10). It has a width where the two agree
    on every item, as the t interval has not.

    His table II has this case of 36 hits of both, 12 of the first alone and 2 of the other:

    >>> ends = newcombe([1] * 48 + [0] * 2, [1] * 36 + [0] * 12 + [1] * 2)
    >>> tuple(round(end, 4) for end in ends)
    (0.0569, 0.3404)
    """
    right_N, other_N = (np.asarray(side, np.float64) > 0.5 for side in (right_N, other_N))
    count = len(right_N)
    first, second = right_N.mean(), other_N.mean()
    (low1, high1), (low2, high2) = (wilson(x.sum(), count) for x in (right_N, other_N))
    both, neither = np.sum(right_N & other_N), np.sum(~right_N & ~other_N)
    only, other = np.sum(right_N & ~other_N), np.sum(~right_N & other_N)
    scale = math.sqrt(float((both + only) * (other + neither) * (both + other) * (only + neither)))
    # The correlation of the two, with Newcombe's correction for continuity where it is positive.
    product = float(both * neither - only * other)
    product = max(product - count / 2, 0.0) if product > 0 else product
    phi = product / scale if scale else 0.0

    def half(down: float, up: float) -> float:
        return math.sqrt(max(down**2 - 2 * phi * down * up + up**2, 0.0))

    difference = first - second
    low = difference - half(first - low1, high2 - second)
    return float(low), float(difference + half(high1 - first, second - low2))


def newcombe_apart(right: float, count: int, other: float, others: int) -> Interval:
    """The interval of the difference of two shares of other items each: `right` of `count` less
    `other` of `others` (Newcombe 1998, Statistics in Medicine 17:873, method 10). Drawing items
    anew has no width where both shares are 0 or 1; this one has.

    The first case of his table II, 56 of 70 and 48 of 80:

    >>> tuple(round(end, 4) for end in newcombe_apart(56, 70, 48, 80))
    (0.0524, 0.3339)
    """
    first, second = right / count, other / others
    (low1, high1), (low2, high2) = wilson(right, count), wilson(other, others)
    low = first - second - math.hypot(first - low1, high2 - second)
    return low, first - second + math.hypot(high1 - first, second - low2)


def bootstrap(
    count: int, statistic: Callable[[np.ndarray], np.ndarray], resamples: int = RESAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """The intervals of any numbers of `count` items, by drawing items with replacement (Efron 1979,
    the percentiles): (lows, highs), an element for each number.

    `statistic` computes the numbers, [M], from weights float64 [N], how often each item was drawn.
    A number that some draw does not have is NaN there and left out of its percentiles. The draws
    are the same at every call with this count, so that numbers and models share them.
    """
    random = np.random.default_rng(0)
    share_N = np.full(count, 1 / count)
    numbers_RM = np.array(
        [statistic(random.multinomial(count, share_N).astype(float)) for _ in range(resamples)]
    )
    lows_M, highs_M = np.full((2, numbers_RM.shape[1]), np.nan)
    for number, column_R in enumerate(numbers_RM.T):
        # Infinite values of a few draws are ends as good as others; a percentile between two
        # numbers would be infinity minus infinity.
        known = column_R[~np.isnan(column_R)]
        if len(known):
            ends = np.percentile(known, (2.5, 97.5), method="nearest")
            lows_M[number], highs_M[number] = ends
    return lows_M, highs_M
