"""Runs side by side: their last metrics, their evaluations, how these differ item by item, and what
differs in their configs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.evals.estimates import difference_of_means
from research.evals.results import FOLDER
from research.experiment.config import complete
from research.files import flatten, read_json
from research.training.metrics import Row, read_rows
from research.training.report_evals import read_summaries

# Rows that say where a run stands and not how good it is.
_PLACES = ("step", "seconds", "tokens", "nonfinite")


@dataclass(frozen=True)
class Run:
    """A run directory.

    name         the shortest end of its path that no other has
    rows         of metrics.jsonl
    config       of config.json by dotted path
    evaluations  what `evals/NAME.json` says, by name
    """

    name: str
    folder: Path
    rows: Sequence[Row]
    config: Mapping[str, Any]
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def last(self) -> dict[str, float | None]:
        """The last value of each metric by name, and the steps, seconds and tokens so far."""
        found: dict[str, float | None] = {}
        for row in self.rows:
            found |= {name: value for name, value in row.items() if name != "nonfinite"}
        places = {name: found.pop(name) for name in _PLACES if name in found}
        return {**places, **found}


def open_runs(paths: Sequence[str]) -> list[Run]:
    """The runs in these directories. ValueError for fewer than two, one that is given twice, and a
    directory that is no run."""
    folders = [Path(path).expanduser().resolve() for path in paths]
    if len(folders) < 2 or len({*folders}) < len(folders):
        raise ValueError(f"give two or more directories of different runs, not {list(paths)}")
    runs = []
    for folder, name in zip(folders, _names(folders)):
        rows = read_rows(folder / "metrics.jsonl")
        if not rows or not (folder / "config.json").is_file():
            raise ValueError(
                f"{folder} is no run: it has no config.json or no rows in metrics.jsonl"
            )
        # An older run's fields that are absent are at their defaults.
        config = flatten(complete(read_json(folder / "config.json")))
        runs.append(Run(name, folder, rows, config, read_summaries(folder)))
    return runs


def _names(folders: Sequence[Path]) -> list[str]:
    for parts in range(1, 32):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len({*names}) == len(names):
            break
    return names


def config_differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """{field: its value in each run} of the fields that are not the same in all, None where a run
    lacks one."""
    names = dict.fromkeys(name for run in runs for name in run.config)
    values = {name: [run.config.get(name) for run in runs] for name in names}
    # Compared as JSON, since a config may hold lists and an empty section.
    return {
        name: each
        for name, each in values.items()
        if len({json.dumps(one, sort_keys=True) for one in each}) > 1
    }


def paired(run: Run, other: Run) -> dict[str, dict[str, dict[str, Any]]]:
    """{evaluation: {metric: the difference run - other as `Estimate.to_json`}} of the evaluations
    that both have items of, for metrics that are means over items. Evaluations whose items have
    other ids are left out: they are of other data."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in run.evaluations.keys() & other.evaluations.keys():
        sides = [_means(one.folder / FOLDER / f"{name}.jsonl") for one in (run, other)]
        metrics = {}
        for metric in sides[0].keys() & sides[1].keys():
            each, others = sides[0][metric], sides[1][metric]
            known = run.evaluations[name]["metrics"]
            if each.keys() == others.keys() and metric in known:
                pairs = [(value, others[id]) for id, value in each.items()]
                metrics[metric] = difference_of_means(*zip(*pairs)).to_json()
        if metrics:
            known = [m for m in run.evaluations[name]["metrics"] if m in metrics]
            found[name] = {metric: metrics[metric] for metric in known}
    return dict(sorted(found.items()))


def _means(path: Path) -> dict[str, dict[str, float]]:
    """{metric: {id: number}} of the items in a file, without metrics that are means of several
    things or no numbers."""
    found: dict[str, dict[str, float]] = {}
    lines = path.read_text("utf-8").split("\n") if path.exists() else []
    for line in filter(None, lines):
        item = json.loads(line)
        for metric, value in item["metrics"].items():
            if value is not None and metric not in item.get("counts", {}):
                found.setdefault(metric, {})[item["id"]] = value
    return found


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """All of it as JSON values: "runs" by name with "metrics" and "evaluations"; "config" with the
    fields that differ; "differences" of each further run from the first, by item."""
    first, *others = runs
    return {
        "runs": {
            run.name: {
                "folder": str(run.folder),
                "metrics": run.last,
                "evaluations": {name: one["metrics"] for name, one in run.evaluations.items()},
            }
            for run in runs
        },
        "config": {
            name: dict(zip([run.name for run in runs], values))
            for name, values in config_differences(runs).items()
        },
        "against": first.name,
        "differences": {run.name: paired(run, first) for run in others},
    }
