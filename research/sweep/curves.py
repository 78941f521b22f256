"""Curves of a metric over seeds: on equal tokens and on equal FLOPs."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from research.sweep.grid import Contrast, Grid, Point, Record
from research.sweep.statistics import Pair

UNITS = ("FLOPs", "tokens")
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class SeedCurve:
    """The mean of a combination's runs, and their extremes, at the places where all have values."""

    xs: Sequence[float]
    means: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


def run_curve(record: Record, metric: str, unit: str) -> Curve:
    """(tokens or FLOPs, value) pairs of a run, in order, without values that are not finite. []
    where its FLOPs are not known."""
    curve, scale = record.get("curves", {}).get(metric, []), 1.0
    if unit == "FLOPs":
        if not (record.get("flops") and record.get("tokens")):
            return []
        scale = record["flops"] / record["tokens"]
    return [(x * scale, y) for x, y in curve if y is not None]


def value_at(curve: Curve, x: float) -> float | None:
    """The value of a curve at `x`, on the straight line between its neighbours; None outside."""
    if not curve or not curve[0][0] <= x <= curve[-1][0]:
        return None
    right = bisect_left(curve, (x,))
    if curve[right][0] == x:
        return curve[right][1]
    (x0, y0), (x1, y1) = curve[right - 1], curve[right]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def seed_curve(grid: Grid, point: Point, metric: str, unit: str) -> SeedCurve | None:
    """The curve of a combination over seeds; None without one. Runs that diverged are in it as far
    as they went."""
    runs = [run_curve(grid.record(point, seed), metric, unit) for seed in grid.plan.seeds]
    runs = [run for run in runs if run]
    columns = []
    for x in sorted({x for run in runs for x, _ in run}):
        ys = [y for run in runs if (y := value_at(run, x)) is not None]
        columns.append((x, sum(ys) / len(ys), min(ys), max(ys)))
    return SeedCurve(*zip(*columns)) if columns else None


def costs_differ(grid: Grid, contrast: Contrast, unit: str) -> bool:
    """True if a run of a contrast and the one that it is compared with read or compute amounts that
    differ by over a hundredth."""
    name = "flops" if unit == "FLOPs" else "tokens"
    for side in contrast.sides:
        for seed in grid.plan.seeds:
            runs = [grid.record(point, seed) for point in side]
            level, base = (_amount(run, name) for run in runs)
            if level and base and abs(level - base) > 0.01 * base:
                return True
    return False


def equal_pairs(grid: Grid, metric: str, contrast: Contrast, unit: str) -> list[Pair]:
    """The pairs of a contrast, a mean over its sides for each seed, read off the curves at the most
    tokens or FLOPs that all its runs have. Seeds with a run that failed are left out; one that
    diverged counts as the worst value of the sweep."""
    pairs = []
    for seed in grid.plan.seeds:
        runs = {point: grid.record(point, seed) for point in _points(contrast)}
        curves = {
            point: run_curve(record, metric, unit)
            for point, record in runs.items()
            if record.get("state") in ("done", "stopped")
        }
        ends = [curve[-1][0] for curve in curves.values() if curve]
        if not ends:
            continue
        values = {
            point: value_at(curves[point], min(ends))
            if point in curves
            else grid.value(point, seed, metric)
            for point in runs
        }
        if None not in values.values():
            level, base = zip(*[[values[point] for point in side] for side in contrast.sides])
            pairs.append((sum(level) / len(level), sum(base) / len(base)))
    return pairs


def _amount(run: Record, name: str) -> float | None:
    """The tokens that a run has read, or its FLOPs; of one that was stopped those up to there."""
    if run.get("state") == "done":
        return run.get(name)
    return run.get("tokens") if run.get("state") == "stopped" and name == "tokens" else None


def _points(contrast: Contrast) -> list[Point]:
    return list(dict.fromkeys(point for side in contrast.sides for point in side))
