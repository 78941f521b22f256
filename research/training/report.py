"""`report.html`: a page about a run, made from the files of its directory. It has no scripts and
opens without a network."""

import os
import shlex
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from research.files import flatten, read_json, write_text
from research.training.events import read_events
from research.training.goodput import goodput
from research.training.metrics import read_rows
from research.training.page import diff_table, facts_table, page, sample_card
from research.training.report_charts import charts
from research.training.report_evals import evaluations
from research.training.report_facts import bought, headline, predicted_and_measured, warning
from research.training.samples import read_samples
from research.training.time_chart import time_chart

# The field of config.json that names the checkpoint or run that this one starts from.
PARENT = "init"
SAMPLES_OPEN = 3  # samples shown unfolded, the last ones


def write_report(workdir: str | os.PathLike) -> Path:
    """Writes `report.html` from the files that the run directory has so far, and returns its path.

    A section whose file is missing is left out. ValueError for a directory without rows in
    `metrics.jsonl`.
    """
    folder = Path(workdir)
    rows = read_rows(folder / "metrics.jsonl")
    if not rows:
        raise ValueError(
            f"{folder} has no metrics.jsonl with rows; pass the --workdir of a training run"
        )
    # Only the metrics are required: a report of a run that crashed, or of an older version, is
    # worth having.
    config = _read(folder / "config.json")
    provenance = _read(folder / "provenance.json")
    tiles = f'<div class="tiles">{"".join(headline(rows, config, provenance))}</div>'
    sections = [
        ("", tiles + warning(rows) + bought(rows)),
        (
            "Predicted and measured",
            facts_table(predicted_and_measured(_read(folder / "fit.json"), rows)),
        ),
        ("Where the time went", _time(folder)),
        ("Curves", f'<div class="charts">{"".join(charts(rows))}</div>'),
        ("Evaluations", evaluations(folder)),
        ("Samples", _samples(folder / "samples.txt")),
        ("Changes from the parent run", _changes(folder, config)),
        ("Configuration", facts_table(_fields(config))),
        ("Provenance", facts_table(_origin(provenance))),
    ]
    target = folder / "report.html"
    write_text(target, page(folder.resolve().name, _subtitle(config, provenance), sections))
    return target


def _time(folder: Path) -> str:
    """Runs made before there were events have none."""
    events = read_events(folder)
    return time_chart(goodput(events)) if events else ""


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _samples(path: Path) -> str:
    # The newest first, since it says how good the model is now.
    cards = [sample_card(*sample) for sample in reversed(read_samples(path))]
    # A long run has hundreds of samples; only the last are open.
    older = cards[SAMPLES_OPEN:]
    fold = (
        f"<details><summary>{len(older)} earlier samples</summary>{''.join(older)}</details>"
        if older
        else ""
    )
    return "".join(cards[:SAMPLES_OPEN]) + fold


def _changes(folder: Path, config: Mapping[str, Any]) -> str:
    """A table of the config fields that differ from those of the parent run; "" for a run that
    starts anew, or from a checkpoint that is no run."""
    flat = _fields(config)
    parent = flat.get(PARENT)
    if not parent or not isinstance(parent, str):
        return ""
    # `init` is relative to the folder where the run was started, which may not be this one. A
    # parent is often a sibling of the run.
    places = [Path(parent), folder.parent / parent]
    parent_folder = next((place for place in places if (place / "config.json").is_file()), None)
    if parent_folder is None:
        return ""
    before = read_json(parent_folder / "config.json")
    # Hugging Face's config.json, not a run's.
    if not isinstance(before, dict) or not isinstance(before.get("model"), dict):
        return ""
    return f"<p>Parent: <code>{escape(parent)}</code></p>" + diff_table(_fields(before), flat)


def _origin(provenance: Mapping[str, Any]) -> dict[str, Any]:
    flat = _fields(provenance)
    if isinstance(flat.get("command"), list):
        flat["command"] = shlex.join(map(str, flat["command"]))
    return flat


def _subtitle(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    flat = _fields(provenance)
    facts = [str(flat.get("started", "")).replace("T", " ").replace("+00:00", " UTC")]
    if flat.get("devices.kind"):
        facts.append(f"{flat.get('devices.count', 1)} × {flat['devices.kind']}")
    if flat.get("git.commit"):
        facts.append(
            f"commit {flat['git.commit'][:10]}" + (" with changes" if flat.get("git.dirty") else "")
        )
    if config.get(PARENT):
        facts.append(f"from {config[PARENT]}")
    return " · ".join(str(fact) for fact in facts if fact)


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted path; sections without a field have no line in a table."""
    return {name: value for name, value in flatten(values).items() if value != {}}
