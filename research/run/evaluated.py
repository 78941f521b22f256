"""Evaluations of a model that is opened: those of its run's config, and any others by name."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.data.loader import Window
from research.evals.choose import make_evaluations, shorthand
from research.evals.evaluation import Evaluation, RunData
from research.evals.ready import members
from research.evals.results import Result, measure
from research.experiment.config import Experiment
from research.interop.runs import is_run
from research.objectives.choose import make_objective
from research.run.opened import Opened, open_model
from research.run.start import open_data

# Kinds that measure a run's own held-out data where they name none, which takes a while to open.
_OF_HELDOUT = ("heldout", "rewards", "answers", "entities", "pictures", "media")

Settings = dict[str, dict[str, Any]]


def open_evaluated(
    workdir: str | None, checkpoint: str | None, adapter: str = "", **options: Any
) -> tuple[Opened, Path | None]:
    """(the model to evaluate, the directory of its run or None). A checkpoint that is the directory
    of a run is opened as that run, see `open_model`."""
    if checkpoint and not adapter and is_run(Path(checkpoint).expanduser()):
        workdir, checkpoint = str(Path(checkpoint).expanduser()), None
    opened = open_model(workdir, checkpoint, adapter=adapter, **options)
    return opened, Path(workdir) if workdir else None


def choose(names: Sequence[str], opened: Opened, changes: Sequence[str]) -> Settings:
    """The settings of evaluations by name: those of the run's config, if it has one of that name,
    with changes such as "boolq.limit=100". Groups such as "bias" stand for their members, of which
    those that this kind of model cannot be measured on are left out, which is said. ValueError if
    none is left, and for a change of no evaluation that is named, or that is none."""
    given = opened.experiment.evals if opened.experiment else {}
    settings: Settings = {}
    kind = opened.model.config.kind
    found, left = members(names, kind)
    if not found:
        raise ValueError(
            f"{', '.join(names)}: nothing of it can be asked of a model of kind {kind!r}; name "
            "evaluations of research/evals/README.md that can"
        )
    if left:
        print(f"left out, as the model is of kind {kind!r}: {', '.join(left)}", file=sys.stderr)
    for name, fields in found.items():
        name, short = shorthand(name)
        settings[name] = {**short, **fields, **given.get(name, {})}
    for change in changes:
        path, equals, text = change.partition("=")
        name, dot, field = path.partition(".")
        if not (equals and dot and field) or name not in settings:
            raise ValueError(
                f"--set={change} must be NAME.FIELD=VALUE with NAME one of {', '.join(settings)}"
            )
        settings[name][field] = _value(text)
    return settings


def _value(text: str) -> Any:
    """A number, true, false or a list where the text is one as JSON, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def make_chosen(settings: Settings, opened: Opened) -> dict[str, Evaluation]:
    """The evaluations by name. ValueError for an unknown one and for settings that do not fit."""
    kinds = {
        fields.get("kind", name) for name, fields in settings.items() if not fields.get("data")
    }
    data = RunData(kind=opened.model.config.kind)
    if opened.experiment is not None and not kinds.isdisjoint(_OF_HELDOUT):
        data = _run_data(opened.experiment, Path(opened.source))
    return make_evaluations(settings, data)


def evaluate(evaluations: Mapping[str, Evaluation], opened: Opened) -> dict[str, Result]:
    """The results by name. Says on standard error which one is measured, as each may take long."""
    results = {}
    for name, evaluation in evaluations.items():
        print(f"measuring {name} of {opened.source}", file=sys.stderr)
        for note in evaluation.notes():  # before the numbers that they are about
            print(f"{name}: {note}", file=sys.stderr)
        results[name] = measure(name, evaluation, opened)
    return results


def _run_data(experiment: Experiment, workdir: Path) -> RunData:
    """The held-out data of a run, as in its training."""
    corpus = open_data(experiment, workdir / "tokenizer")
    objective = make_objective(experiment.objective, corpus.tokenizer, experiment.model)
    length = objective.window_length(experiment.data.sequence_length)
    windows: Sequence[Window] = corpus.heldout_windows(length, objective.overlap)
    # The rows of a batch change no sum; a run of rows per device has some number of devices.
    rows = experiment.data.batch_size or experiment.data.batch_size_per_device
    return RunData(objective, windows, rows, corpus)
