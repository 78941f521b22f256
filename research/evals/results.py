"""What was measured, kept in a folder: `evals/NAME.jsonl` has the items of an evaluation, a line
each, and `evals/NAME.json` its numbers with their intervals. The second is written last: where it
is, the evaluation was finished.

    {"id": "q1", "metrics": {"acc": 1.0}, "texts": {"prompt": "2 + 2 ="}, "slices": {}}
"""

import hashlib
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
    text = "".join(f"{line}\n" for line in lines)
    write_text(target / f"{result.name}.jsonl", text)
    slices = {
        name: {group: _json(estimates) for group, estimates in groups.items()}
        for name, groups in by_slice(result.evaluation, result.items).items()
    }
    summary = {
        **facts,
        "items_sha256": _sha256(text),
        "main": result.evaluation.main,
        "lower_is_better": result.evaluation.lower_is_better,
        "notes": list(result.evaluation.notes()),
        "metrics": _json(result.estimates()) if numbers is None else numbers,
        "slices": slices,
    }
    write_json(target / f"{result.name}.json", summary)
    return target / f"{result.name}.jsonl"


def read_kept(
    folder: Path, name: str, evaluation: Evaluation, facts: Mapping[str, Any]
) -> tuple[Result, dict[str, Any]] | None:
    """(the result, what is kept of it) where `keep` has written an evaluation with these `facts`
    into `folder`; None where it has not, or where its items have changed since."""
    path = folder / FOLDER / f"{name}.json"
    try:
        summary = json.loads(path.read_text("utf-8"))
        text = path.with_suffix(".jsonl").read_text("utf-8")
    except (OSError, ValueError):
        return None
    if not isinstance(summary, dict) or any(summary.get(fact) != facts[fact] for fact in facts):
        return None
    if summary.get("items_sha256") != _sha256(text):
        return None  # a later command was ended between its two files
    # Texts of a model may have characters at which `splitlines` would break a line of JSON.
    items = [_item(json.loads(line)) for line in text.split("\n") if line]
    if any(math.isnan(total) for item in items for total, _ in item.totals.values()):
        return None  # JSON has no infinities, so which number it was is not known
    return Result(name, evaluation, items), summary


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _json(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: one.to_json() for name, one in estimates.items()}


def _record(item: Item) -> dict[str, Any]:
    """The line of an item. "counts" has what a number is the mean of, where that is not 1, and
    "sums" the sum where the mean is too rounded to give it back."""
    metrics, counts, sums, parts = {}, {}, {}, {}
    for name, (total, count) in item.totals.items():
        if "/" in name:
            parts[name] = [total, count]
            continue
        value = total / count if count else math.nan
        metrics[name] = value if math.isfinite(value) else None
        if count != 1:
            counts[name] = count
        if math.isfinite(value) and value * count != total:
            sums[name] = total
    record: dict[str, Any] = {"id": item.id, "metrics": metrics}
    for name, values in (("counts", counts), ("sums", sums), ("parts", parts)):
        if values:
            record[name] = values
    return {**record, "texts": dict(item.texts), "slices": dict(item.slices)}


def _item(record: Mapping[str, Any]) -> Item:
    """The item of a line; a number that the line does not have is NaN."""
    counts, sums = record.get("counts", {}), record.get("sums", {})
    totals = {name: (sums[name], counts.get(name, 1.0)) for name in sums}
    for name, value in record["metrics"].items():
        count = counts.get(name, 1.0)
        totals.setdefault(name, (math.nan if value is None else value * count, count))
    totals |= {name: (total, count) for name, (total, count) in record.get("parts", {}).items()}
    return Item(record["id"], totals, record["texts"], record["slices"])
