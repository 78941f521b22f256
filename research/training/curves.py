"""The arithmetic of plotted curves: ticks, thinning, smoothing. `plot.py` draws them."""

import itertools
import math
from bisect import bisect_left
from collections.abc import Sequence

Line = tuple[Sequence[float], Sequence[float | None]]  # (xs, ys) of equal length
Clean = tuple[list[float], list[float]]
# About float32's smallest normal number; smaller values would only stretch a logarithmic axis.
SMALLEST = 1.2e-38


def tick_text(value: float) -> str:
    """Short, and exact for round numbers: 0, 0.0015, 3e-5, 250, 1.2k, 3M."""
    size = abs(value)
    # From 1e15 on an exponent is shorter than a number of trillions.
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if limit <= size < 1e15:
            return f"{value / limit:.4g}{suffix}"
    if size >= 1e15 or 0 < size < 1e-4:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.6g}"


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    # The step that would give exactly `count` ticks; the next round number above it is taken.
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    # The factor 0.999 keeps a range such as 0 to 1 from losing its step of 0.2 to rounding.
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Rounded to 12 digits of a step: 3 * 0.1 is 0.30000000000000004.
    digits = 12 - math.floor(math.log10(step))
    return [round(i * step, digits) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high], thinned to about five; multiples of them too where there
    are fewer than three."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    # Three powers or more say enough by themselves.
    if last - first >= 2:
        return [
            10.0**exponent for exponent in range(first, last + 1, math.ceil((last - first + 1) / 6))
        ]
    # Fewer labels for a wide range; a narrow one needs more to have any.
    factors = (1, 2, 5) if high > 10 * low else (1, 2, 3, 5, 7)
    fine = [
        factor * 10.0**exponent for exponent in range(first - 1, last + 1) for factor in factors
    ]
    ticks = [tick for tick in fine if low * 0.999 <= tick <= high * 1.001]
    return ticks if len(ticks) > 1 else linear_ticks(low, high)


def usable(line: Line, log_x: bool, log_y: bool) -> Clean:
    """The pairs that can be drawn: both numbers finite, and positive where the axis is
    logarithmic."""
    pairs = [
        (float(x), float(y))
        for x, y in zip(*line, strict=True)
        if y is not None
        and math.isfinite(x)
        and math.isfinite(y)
        and (x > SMALLEST or not log_x)
        and (y > SMALLEST or not log_y)
    ]
    return [x for x, _ in pairs], [y for _, y in pairs]


def padded(values: Sequence[float], log: bool, share: float) -> tuple[float, float]:
    """The range of the values, wider by a share of itself on both sides and never empty."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # equal values: any range around them will do
        if log:
            return low / 2, high * 2
        return low - (abs(low) / 2 or 1.0), high + (abs(high) / 2 or 1.0)
    if log:
        # On a logarithmic axis a share of the range is a factor.
        factor = (high / low) ** share
        return low / factor, high * factor
    return low - share * (high - low), high + share * (high - low)


def fraction(value: float, low: float, high: float, log: bool) -> float:
    """Where the value lies between low (0) and high (1)."""
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low)


def thin(
    line: Clean, count: int, low: float, high: float, log: bool
) -> list[tuple[float, float, float, float]]:
    """Groups of neighbours as (last x, mean y, lowest y, highest y): one for each value where there
    are at most `count`, otherwise one for each of `count` equal parts of the axis."""
    if len(line[0]) <= count:
        return [(x, y, y, y) for x, y in zip(*line)]
    groups = itertools.groupby(
        zip(*line), lambda pair: int(count * fraction(pair[0], low, high, log))
    )
    # Means over equal parts of the axis, so that a logarithmic axis is thinned where its points are
    # dense.
    columns = (tuple(zip(*pairs)) for _, pairs in groups)
    return [(xs[-1], sum(ys) / len(ys), min(ys), max(ys)) for xs, ys in columns]


def running_mean(ys: Sequence[float]) -> list[float]:
    """The mean of each value's neighbours, weighted by a bell about a twentieth of the values wide.

    At position i the bell reaches at most i / 4 back, because a loss falls steeply near the
    beginning, where a wide mean would lie above the curve.
    """
    count, low, high = len(ys), min(ys, default=0.0), max(ys, default=0.0)
    # A box applied twice is a bell: a spike becomes a smooth hump and not a step.
    for _ in range(2):
        sums = [0.0, *itertools.accumulate(ys)]
        # Two boxes of count / 60 to each side make a bell of about count / 15 in all.
        reach = [min(count // 60, i // 4) for i in range(count)]
        bounds = [(i - r, min(count, i + r + 1)) for i, r in enumerate(reach)]
        # A difference of running sums loses digits after a large spike; a mean stays in the range
        # of the values.
        ys = [
            min(high, max(low, (sums[end] - sums[start]) / (end - start))) for start, end in bounds
        ]
    return list(ys)


def nearest(line: Clean, x: float) -> tuple[float, float]:
    """The pair whose x is closest; the xs must not decrease."""
    xs, ys = line
    # A tie goes to the earlier value.
    i = bisect_left(xs, x)
    if i == len(xs) or (i and x - xs[i - 1] <= xs[i] - x):
        i -= 1
    return xs[i], ys[i]
