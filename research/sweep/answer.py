"""The answer of a sweep: every level compared with the baseline."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from research.sweep.curves import UNITS, costs_differ, equal_pairs
from research.sweep.grid import Contrast, Grid, Sample
from research.sweep.statistics import LEAST_SEEDS, Comparison, judge

STOPPED = "stopped early"  # the verdict on a level that halving did not let finish
COLUMNS = ("factor", "level", "metric", "difference", "low", "high", "seeds", "verdict")


@dataclass(frozen=True)
class Finding:
    """What was found of a level for a metric. A combination of several factors has their names
    joined by " x " as its factor, and all levels as its level."""

    factor: str
    level: str
    metric: str
    sample: Sample
    comparison: Comparison

    def row(self) -> dict[str, Any]:
        """The row of `results.csv`. An infinite end of an interval is empty, as is the difference
        of a level of which no run has ended."""
        one = self.comparison
        row = {"factor": self.factor, "level": self.level, "metric": self.metric}
        row |= {name: getattr(one, name) for name in ("difference", "low", "high")}
        row = {
            name: "" if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        return {**row, "seeds": one.seeds, "verdict": one.verdict}

    @property
    def combines(self) -> bool:
        """True for a combination of several factors."""
        return " x " in self.factor

    @property
    def per_cost(self) -> float | None:
        """Difference for each further cost of a baseline's run: at twice the FLOPs the difference
        itself. None where the cost is the same within a hundredth, or not known."""
        if self.sample.cost is None or abs(self.sample.cost - 1) < 0.01:
            return None
        return self.comparison.difference / (self.sample.cost - 1)


def findings(grid: Grid) -> list[Finding]:
    """For each metric the levels of the factors, then combinations of several factors; then, for
    levels that cost more or less than the baseline, the metric at equal FLOPs and equal tokens.

    A level's difference in a seed is the mean of the metric's differences over the combinations of
    the other factors that were run with it and with the baseline's level. The levels of a metric
    are one family for Holm's correction, its combinations another. Levels without a complete pair
    are left out, but for those that halving stopped: they have no verdict, since the seeds or
    combinations that are left of them were chosen by their values. The comparison at equal tokens
    is that on the lowest rung.
    """
    found = []
    for metric, better in grid.plan.metrics.items():
        levels = _samples(grid, metric, grid.contrasts())
        found += _judged(metric, better, levels)
        found += _judged(metric, better, _samples(grid, metric, grid.combinations()))
        for unit in UNITS:
            equal = {
                contrast: replace(sample, pairs=equal_pairs(grid, metric, contrast, unit))
                for contrast, sample in levels.items()
                if costs_differ(grid, contrast, unit)
            }
            found += _judged(f"{metric} at equal {unit}", better, equal)
    return found


def _samples(grid: Grid, metric: str, contrasts: Iterable[Contrast]) -> dict[Contrast, Sample]:
    return {one: grid.sample(metric, one) for one in contrasts}


def _judged(metric: str, better: str, samples: Mapping[Contrast, Sample]) -> list[Finding]:
    # At equal amounts of tokens or FLOPs runs that were stopped have their values.
    whole = " at equal " not in metric
    stopped = {one: sample for one, sample in samples.items() if sample.stopped and whole}
    pairs = {
        one: sample.pairs for one, sample in samples.items() if sample.pairs and one not in stopped
    }
    found = judge(pairs, better, len(stopped))
    found |= dict.fromkeys(stopped, _UNKNOWN)
    return [
        Finding(contrast.factor, contrast.level, metric, samples[contrast], one)
        for contrast, one in found.items()
    ]


_UNKNOWN = Comparison(
    0, math.nan, -math.inf, math.inf, 1.0, 1.0, math.inf, LEAST_SEEDS, None, verdict=STOPPED
)


def results_csv(found: Sequence[Finding]) -> str:
    """The text of `results.csv`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(one.row() for one in found)
    return text.getvalue()


def headline(found: Sequence[Finding], metric: str) -> list[str]:
    """The answer in sentences, those with a verdict first. Of the combinations of several factors
    only the one with the best mean is told, if it is better than the baseline."""
    mine = [one for one in found if one.metric == metric]
    order = ("better", "worse", "no evidence")
    levels = [one for one in mine if not one.combines]
    levels.sort(key=lambda one: order.index(v) if (v := one.comparison.verdict) in order else 9)
    better = [one for one in mine if one.combines and one.comparison.verdict == "better"]
    best = max(better, key=lambda one: abs(one.comparison.difference), default=None)
    return [sentence(one) for one in [*levels, *([best] if best else [])]]


def sentence(one: Finding) -> str:
    """A finding in words: "rank 2 is worse than the baseline: eval/loss +0.12 (+0.08 to +0.16)"."""
    c = one.comparison
    words = f"{one.metric} {c.difference:+.4g}"
    if math.isfinite(c.low):
        words += f" ({c.low:+.4g} to {c.high:+.4g})"
    name = f"{one.factor} {one.level}"
    if one.combines:
        name = f"of the combinations, {one.factor} = {one.level}"
    if c.verdict in ("better", "worse"):
        text = f"{name} is {c.verdict} than the baseline: {words}"
    elif c.verdict == "no evidence":
        text = (
            f"{name}: no evidence of a difference, {words}; {c.seeds} seeds find one of "
            f"{c.detectable:.2g} with a probability of 80%"
        )
    else:
        text = f"{name} {c.verdict} for a verdict: {words} of {c.seeds}"
    notes = [f"{one.sample.diverged} runs diverged and count as the worst"] * bool(
        one.sample.diverged
    )
    notes += [f"{one.sample.failed} runs failed"] * bool(one.sample.failed)
    if c.verdict == STOPPED:
        where = f"{one.metric} at equal tokens compares them"
        text = f"{name} has no verdict: {one.sample.stopped} runs were stopped early; {where}"
    return "; ".join([text, *notes])
