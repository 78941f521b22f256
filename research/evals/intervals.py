"""Intervals of measured shares."""

import math
from collections.abc import Sequence

_Z = 1.959964  # of a normal distribution, 95% lie within so many standard deviations


def wilson(right: float, count: int) -> tuple[float, float]:
    """The 95% interval of a share of which `right` of `count` independent trials were hits (Wilson
    1927). Unlike the share plus or minus two standard errors it stays within [0, 1] and has a width
    at 0 and 1, too.

    >>> tuple(round(end, 3) for end in wilson(60, 60))
    (0.94, 1.0)
    """
    share, z2 = right / count, _Z**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def paired(differences: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): the mean of the differences between two measurements of the same things,
    with its 95% interval. What both find hard cancels, so it is narrower than two intervals apart.

    >>> tuple(round(one, 3) for one in paired([1, 0, 0, 1]))
    (0.5, -0.066, 1.066)
    """
    count, mean = len(differences), sum(differences) / len(differences)
    if count < 2:
        return mean, -math.inf, math.inf
    variance = sum((one - mean) ** 2 for one in differences) / (count - 1)
    half = _Z * math.sqrt(variance / count)
    return mean, mean - half, mean + half
