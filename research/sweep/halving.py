"""Successive halving: of the combinations of a sweep only the best go on from rung to rung.

Asynchronous, as ASHA (arXiv:1810.05934, algorithm 2): nobody waits for a rung to fill. A
combination that has reached a rung goes on as soon as it is among the best 1 / eta of those that
are there, and new ones are begun meanwhile; so a few go on early that the whole rung would not have
chosen. When nothing can go on any more, the others have stopped for good, and their records say so.

All seeds of a combination are judged together, by the mean of the first metric of the sweep at the
tokens of the rung, and the baseline is never stopped, since everything is compared with it. A
combination of which a run diverged or failed does not go on.

How far a combination may go is in `rung.json` of its first cell; everything else is read from the
runs, so that any number of machines decide alike and nothing is held in memory alone.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from research.files import read_json, write_json
from research.sweep.cells import tokens_of_step
from research.sweep.ledger import Ledger
from research.sweep.plan import Plan
from research.training.metrics import read_rows

GOAL = "rung.json"
Point = tuple[tuple[str, str], ...]  # the levels of a combination, by factor


@dataclass
class Rungs:
    """The rungs of a plan with halving, and where the runs of a ledger are on them.

    Rung `len(tokens)` is the end of the run. Methods that name a rung count from 0.
    """

    ledger: Ledger
    plan: Plan
    _values: dict[tuple[str, int], float] = field(default_factory=dict)
    _tokens_of_step: dict[str, int] = field(default_factory=dict)

    @property
    def tokens(self) -> Sequence[int]:
        """The training tokens of each rung."""
        return self.plan.halving["rungs"]

    def jobs(self) -> list[tuple[str, int]]:
        """(cell, step to train to, 0 for the end) of all runs that may go on, those on the highest
        rungs first; promotes whom it can."""
        points = self._points()
        goals = self._promoted(points)
        found = []
        # On one rung in the order of their cells, whose names are hashes: of levels in a rising
        # order each could be the best so far, and all would go on.
        for point in sorted(points, key=lambda point: (-goals[point], points[point][0])):
            for key in points[point]:
                rung = goals[point]
                if not self.ledger.ended(key) and not self._at(key, rung):
                    found.append((key, self._step(key, rung) if rung < len(self.tokens) else 0))
        return found

    def reached(self, key: str, step: int) -> bool:
        """True if a run has been evaluated at a step."""
        return any(self._step(key, k) == step and self._at(key, k) for k in range(len(self.tokens)))

    def stopped(self) -> dict[str, str]:
        """Why each run on a rung goes no further, by cell, once `jobs` has nothing to do. Where
        nobody went on from a rung, since there are fewer than eta, the best does: then {}."""
        points = self._points()
        goals = self._promoted(points)
        for rung in range(len(self.tokens)):
            ranks = self._ranks(points, goals, rung)
            if ranks and all(goals[point] == rung for point in ranks):
                best = next(iter(ranks))
                if math.isfinite(ranks[best]):
                    self._promote(points[best], rung + 1)
                    return {}
        reasons = {}
        for point, keys in points.items():
            rung = goals[point]
            for key in keys:
                if rung < len(self.tokens) and not self.ledger.ended(key):
                    ranks = self._ranks(points, goals, rung)
                    went = sum(goals[other] > rung for other in ranks)
                    reasons[key] = self._reason(ranks, point, rung, went)
        return reasons

    def let_on(self, keys: Sequence[str]) -> None:
        """Lets the combinations of these cells go on to the end, whatever their rank."""
        for cells in self._points().values():
            if set(cells) & set(keys):
                write_json(self.ledger.cell(cells[0]) / GOAL, {"rung": len(self.tokens)})

    def _points(self) -> dict[Point, list[str]]:
        """The cells of each combination, in the order of the plan."""
        found: dict[Point, list[str]] = {}
        for key, entry in self.plan.cells.items():
            found.setdefault(tuple(entry["levels"].items()), []).append(key)
        return found

    def _promoted(self, points: Mapping[Point, Sequence[str]]) -> dict[Point, int]:
        """The rung that each combination may go to, after promotions."""
        goals = {point: self._goal(point, keys) for point, keys in points.items()}
        for rung in range(len(self.tokens)):
            ranks = self._ranks(points, goals, rung)
            for point in list(ranks)[: len(ranks) // self.plan.halving["eta"]]:
                if goals[point] == rung and math.isfinite(ranks[point]):
                    self._promote(points[point], rung + 1)
                    goals[point] = rung + 1
        return goals

    def _promote(self, keys: Sequence[str], rung: int) -> None:
        write_json(self.ledger.cell(keys[0]) / GOAL, {"rung": rung})
        for key in keys:
            # A run that had been stopped before seeds or levels were added goes on.
            if (self.ledger.record(key) or {}).get("state") == "stopped":
                with contextlib.suppress(FileNotFoundError):  # another machine was first
                    self.ledger.reopen(key)

    def _goal(self, point: Point, keys: Sequence[str]) -> int:
        if dict(point) == self.plan.baseline:
            return len(self.tokens)
        file = self.ledger.cell(keys[0]) / GOAL
        return read_json(file)["rung"] if file.exists() else 0

    def _ranks(
        self, points: Mapping[Point, Sequence[str]], goals: Mapping[Point, int], rung: int
    ) -> dict[Point, float]:
        """The mean of each combination all of whose runs have reached a rung, the best first, with
        the sign that makes less better; infinite where a run diverged or failed."""
        sign = 1 if next(iter(self.plan.metrics.values())) == "lower" else -1
        found = {}
        for point, keys in points.items():
            values = [self._score(key, rung) for key in keys]
            if goals[point] >= rung and None not in values and dict(point) != self.plan.baseline:
                found[point] = sign * sum(values) / len(values)
                if not all(map(math.isfinite, values)):
                    found[point] = math.inf
        return dict(sorted(found.items(), key=lambda item: item[1]))

    def _score(self, key: str, rung: int) -> float | None:
        """The metric of a run at a rung; infinite if it ended badly, None if it is not there."""
        if (self.ledger.record(key) or {}).get("state") in ("failed", "diverged"):
            return math.inf
        return self._values[key, rung] if self._at(key, rung) else None

    def _at(self, key: str, rung: int) -> bool:
        """True if a run has been evaluated at a rung; values are kept, for they do not change."""
        if rung >= len(self.tokens):
            return False  # where the run ends, which its record says
        if (key, rung) not in self._values:
            metric, step = next(iter(self.plan.metrics)), self._step(key, rung)
            for row in read_rows(self.ledger.cell(key) / "run" / "metrics.jsonl"):
                if row["step"] == step and row.get(metric) is not None:
                    self._values[key, rung] = row[metric]
        return (key, rung) in self._values

    def _step(self, key: str, rung: int) -> int:
        if key not in self._tokens_of_step:
            config = read_json(self.ledger.cell(key) / "config.json")
            self._tokens_of_step[key] = tokens_of_step(config)
        return self.tokens[rung] // self._tokens_of_step[key]

    def _reason(self, ranks: Mapping[Point, float], point: Point, rung: int, went: int) -> str:
        tokens = f"stopped at {self.tokens[rung]:,} tokens"
        if not math.isfinite(ranks[point]):
            return f"{tokens}: a run with another seed diverged or failed"
        metric, place = next(iter(self.plan.metrics)), list(ranks).index(point) + 1
        value = abs(ranks[point])
        return f"{tokens}: {metric} {value:.4g} is number {place} of {len(ranks)}, {went} went on"
