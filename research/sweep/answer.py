"""The answer of a sweep: every level compared with the baseline."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from research.sweep.grid import Contrast, Grid, Record, Sample
from research.sweep.plan import Plan
from research.sweep.statistics import Comparison, judge

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
        """The row of `results.csv`. An infinite end of an interval is empty."""
        one = self.comparison
        row = {"factor": self.factor, "level": self.level, "metric": self.metric}
        row |= {name: getattr(one, name) for name in ("difference", "low", "high")}
        row = {name: "" if value in (math.inf, -math.inf) else value for name, value in row.items()}
        return {**row, "seeds": one.seeds, "verdict": one.verdict}

    @property
    def per_cost(self) -> float | None:
        """Difference for each further cost of a baseline's run: at twice the FLOPs the difference
        itself. None where the cost is the same within a hundredth, or not known."""
        if self.sample.cost is None or abs(self.sample.cost - 1) < 0.01:
            return None
        return self.comparison.difference / (self.sample.cost - 1)


def findings(plan: Plan, records: Mapping[str, Record]) -> list[Finding]:
    """For each metric the levels of the factors, then combinations of several factors.

    A level's difference in a seed is the mean of the metric's differences over the combinations of
    the other factors that were run with it and with the baseline's level. The levels of a metric
    are one family for Holm's correction, its combinations another. Levels without a complete pair
    are left out.
    """
    grid = Grid(plan, records)
    found = []
    for metric in plan.metrics:
        for family in (grid.contrasts(), grid.combinations()):
            found += _judged(grid, metric, list(family))
    return found


def _judged(grid: Grid, metric: str, contrasts: Sequence[Contrast]) -> list[Finding]:
    samples = {(one.factor, one.level): grid.sample(metric, one) for one in contrasts}
    pairs = {name: sample.pairs for name, sample in samples.items() if sample.pairs}
    compared = judge(pairs, grid.plan.metrics[metric])
    return [Finding(*name, metric, samples[name], one) for name, one in compared.items()]


def results_csv(found: Sequence[Finding]) -> str:
    """The text of `results.csv`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(one.row() for one in found)
    return text.getvalue()


def headline(found: Sequence[Finding], metric: str) -> list[str]:
    """The answer in sentences, those with a verdict first."""
    mine = [one for one in found if one.metric == metric]
    order = ("better", "worse", "no evidence")
    mine.sort(key=lambda one: order.index(v) if (v := one.comparison.verdict) in order else 9)
    return [sentence(one) for one in mine]


def sentence(one: Finding) -> str:
    """A finding in words: "rank 2 is worse than the baseline: eval/loss +0.12 (+0.08 to +0.16)"."""
    c = one.comparison
    words = f"{one.metric} {c.difference:+.4g}"
    if math.isfinite(c.low):
        words += f" ({c.low:+.4g} to {c.high:+.4g})"
    name = f"{one.factor} {one.level}"
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
    return "; ".join([text, *notes])
