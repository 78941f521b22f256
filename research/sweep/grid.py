"""The records of a sweep as a grid of combinations and seeds, from which pairs are taken."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from research.sweep.plan import Plan
from research.sweep.statistics import Pair

Record = Mapping[str, Any]
Point = tuple[str, ...]  # a level of each factor, in the order of the plan's factors


@dataclass(frozen=True)
class Contrast:
    """What is compared with what: `sides` are combinations, each with the one that it is compared
    with. A level has as many as there are combinations of the other factors."""

    factor: str
    level: str
    sides: tuple[tuple[Point, Point], ...]


@dataclass(frozen=True)
class Sample:
    """The pairs of a contrast, one a seed, each a mean over its sides.

    diverged  number of runs on the level's side that count as the worst value of the sweep
    failed    number of runs, on either side, that gave no value
    stopped   number of runs, on either side, that halving stopped and that give no value either
    cost      FLOPs on the level's side for those on the other; None where not known
    seconds   the same of wall time
    """

    pairs: Sequence[Pair]
    diverged: int
    failed: int
    stopped: int
    cost: float | None
    seconds: float | None


@dataclass
class Grid:
    """The records of a plan's cells; cells without a record are not there."""

    plan: Plan
    records: Mapping[str, Record]
    _entries: dict[tuple[Point, int], Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self):
        for entry in self.plan.entries:
            point = tuple(entry["levels"][name] for name in self.plan.factors)
            self._entries[point, entry["seed"]] = entry

    @property
    def points(self) -> list[Point]:
        """All combinations, in the order of the plan."""
        return list(dict.fromkeys(point for point, _ in self._entries))

    @property
    def baseline(self) -> Point:
        """The combination that the others are compared with."""
        return tuple(self.plan.baseline.values())

    def contrasts(self) -> Iterator[Contrast]:
        """One for each level of each factor but that of the baseline."""
        points = set(self.points)
        for place, (name, levels) in enumerate(self.plan.factors.items()):
            for level in levels[1:]:
                sides = [
                    (point, (*point[:place], levels[0], *point[place + 1 :]))
                    for point in self.points
                    if point[place] == level
                ]
                sides = [side for side in sides if side[1] in points]
                if sides:
                    yield Contrast(name, level, tuple(sides))

    def combinations(self) -> Iterator[Contrast]:
        """One for each combination that differs from the baseline in several factors."""
        for point in self.points:
            differing = sum(a != b for a, b in zip(point, self.baseline))
            if differing > 1:
                name, level = " x ".join(self.plan.factors), ", ".join(point)
                yield Contrast(name, level, ((point, self.baseline),))

    def value(self, point: Point, seed: int, metric: str) -> float | None:
        """The metric of a run; the worst of the sweep if it diverged, None if it failed, if halving
        stopped it, or if it has not ended."""
        record = self.record(point, seed)
        if record.get("state") == "diverged":
            return self.worst(metric)
        value = record.get("metrics", {}).get(metric)
        return value if record.get("state") == "done" else None

    def worst(self, metric: str) -> float | None:
        """The worst value of a metric in the sweep, first evaluations included, which are about
        those of a model that knows nothing. None without any value."""
        values = [
            value
            for record in self.records.values()
            if record["state"] != "stopped"  # whose last value is one of mid-run
            for value in (record.get("metrics", {}).get(metric), record["first"].get(metric))
            if value is not None and math.isfinite(value)
        ]
        worse: Callable = max if self.plan.metrics[metric] == "lower" else min
        return worse(values, default=None)

    def record(self, point: Point, seed: int) -> Record:
        """The record of a run, {} for one that has none."""
        entry = self._entries.get((point, seed))
        return self.records.get(entry["cell"], {}) if entry else {}

    def sample(self, metric: str, contrast: Contrast) -> Sample:
        """The pairs of a contrast for a metric. A side without a value in any seed is left out, and
        then a seed in which one of the sides lacks a value."""
        value, seeds = self.value, self.plan.seeds
        both = {
            side: {seed: tuple(value(point, seed, metric) for point in side) for seed in seeds}
            for side in contrast.sides
        }
        sides = [side for side, pairs in both.items() if any(map(_whole, pairs.values()))]
        pairs = []
        for seed in seeds:
            of_seed = [both[side][seed] for side in sides]
            if of_seed and all(map(_whole, of_seed)):
                level, base = zip(*of_seed)
                pairs.append((sum(level) / len(level), sum(base) / len(base)))
        states = [
            [self.record(point, seed).get("state") for seed in seeds for point in points]
            for points in zip(*contrast.sides)
        ]
        return Sample(
            pairs,
            states[0].count("diverged"),
            states[0].count("failed") + states[1].count("failed"),
            states[0].count("stopped") + states[1].count("stopped"),
            self._ratio("flops", sides),
            self._ratio("seconds", sides),
        )

    def _ratio(self, name: str, sides: Sequence[tuple[Point, Point]]) -> float | None:
        """A field of the records, summed over the level's sides, for the sum over the others."""
        sums = []
        for points in zip(*sides):
            found = [self.record(one, s).get(name) for one in points for s in self.plan.seeds]
            known = [value for value in found if value]
            sums.append(sum(known) / len(known) if known else 0.0)
        return sums[0] / sums[1] if sums and all(sums) else None


def _whole(pair: Sequence[float | None]) -> bool:
    return None not in pair
