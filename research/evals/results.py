"""What was measured, kept in a folder: `evals/NAME.jsonl` has the items of an evaluation, a line
each, and `evals/NAME.json` its numbers with their intervals.

    {"id": "q1", "metrics": {"acc": 1.0}, "texts": {"prompt": "2 + 2 ="}, "slices": {}}
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.evals.estimates import Estimate, by_slice, difference, estimate
from research.evals.evaluation import Evaluation, Item, Opened, add_up
from research.files import write_json, write_text

FOLDER = "evals"  # in a run's directory, or where a checkpoint is evaluated


@dataclass(frozen=True)
class Result:
    """The items of one evaluation of one model."""

    name: str
    evaluation: Evaluation
    items: Sequence[Item]

    @property
    def values(self) -> dict[str, float]:
        """The numbers by name, without their intervals, which take longer."""
        return self.evaluation.values(add_up(item.totals for item in self.items))

    def estimates(self) -> dict[str, Estimate]:
        """The numbers by name, with their intervals."""
        return estimate(self.evaluation, self.items)

    def less(self, other: "Result") -> dict[str, Estimate]:
        """The differences from another model on the same items, see `estimates.difference`."""
        try:
            return difference(self.evaluation, self.items, other.items)
        except ValueError as error:
            raise ValueError(f"evaluation {self.name}: {error}") from None


def measure(name: str, evaluation: Evaluation, opened: Opened) -> Result:
    """Measures a model. ValueError, with the evaluation's name, for one that cannot be measured,
    and for data without an item or with an id twice."""
    try:
        items = list(evaluation.items(opened))
    except ValueError as error:
        raise ValueError(f"evaluation {name}: {error}") from None
    if not items:
        raise ValueError(f"evaluation {name} has no items; give data with some")
    ids: set[str] = set()
    for item in items:
        if item.id in ids:
            raise ValueError(f"evaluation {name} has two items {item.id!r}; give each its own id")
        ids.add(item.id)
    return Result(name, evaluation, items)


def keep(
    folder: Path,
    result: Result,
    facts: Mapping[str, Any],
    numbers: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the two files of a result below `folder`, with `facts` such as the step beside the
    `numbers`, by default its estimates; the path of the items."""
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_record(item), ensure_ascii=False) for item in result.items]
    write_text(target / f"{result.name}.jsonl", "".join(f"{line}\n" for line in lines))
    slices = {
        name: {group: _json(estimates) for group, estimates in groups.items()}
        for name, groups in by_slice(result.evaluation, result.items).items()
    }
    summary = {
        **facts,
        "main": result.evaluation.main,
        "lower_is_better": result.evaluation.lower_is_better,
        "notes": list(result.evaluation.notes()),
        "metrics": _json(result.estimates()) if numbers is None else numbers,
        "slices": slices,
    }
    write_json(target / f"{result.name}.json", summary)
    return target / f"{result.name}.jsonl"


def _json(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: one.to_json() for name, one in estimates.items()}


def _record(item: Item) -> dict[str, Any]:
    """The line of an item. "counts" has what a number is the mean of, where that is not 1."""
    metrics, counts, parts = {}, {}, {}
    for name, (total, count) in item.totals.items():
        if "/" in name:
            parts[name] = [total, count]
            continue
        value = total / count if count else math.nan
        metrics[name] = value if math.isfinite(value) else None
        if count != 1:
            counts[name] = count
    record: dict[str, Any] = {"id": item.id, "metrics": metrics}
    for name, values in (("counts", counts), ("parts", parts)):
        if values:
            record[name] = values
    return {**record, "texts": dict(item.texts), "slices": dict(item.slices)}
