"""A Fit asked for: from the cache, or measured in a process of its own with a time limit and its
progress shown."""

import os
from dataclasses import replace
from pathlib import Path

from research.experiment.config import Experiment
from research.files import write_json
from research.fit import cache
from research.fit.child import measure_in_a_child
from research.fit.lightest import settled
from research.fit.report import Fit
from research.fit.targets import Target, parse_target
from research.run.settled import choice

TIME_LIMIT = 1800.0  # seconds: the largest step that ships takes a tenth of it on two cores
RECORD = "fit.json"
DOES_NOT_FIT = 3  # the exit code


def answer(
    experiment: Experiment,
    target: str,
    *,
    capacity_bytes: int | None = None,
    price_per_hour: float | None = None,
    step: str = "train",
    time_limit: float = TIME_LIMIT,
) -> Fit:
    """What `research.fit.measure.measure` says, kept between calls; nothing is compiled in this
    process.

    Progress goes to standard error. ValueError for what a user can mend, the time limit (seconds)
    among it; `child.CompilerFailed`, with the compiler's last words, where it crashed or the
    machine's memory ran out.
    """
    parsed = parse_target(target)
    capacity = parsed.capacity_bytes if capacity_bytes is None else capacity_bytes
    chosen = _chosen(experiment, parsed, capacity) if step == "train" else experiment
    fields = chosen.to_json()
    # Capacity and price are no part of the question: the same compile answers for any of them, and
    # they are put into the Fit at the end.
    key = cache.question(fields, target, step)
    # Cached answers have the target's own capacity and no price: both are replaced below.
    fit = cache.recall(key)
    if fit is None:
        fit, program = measure_in_a_child(
            {"experiment": fields, "target": target, "step": step}, time_limit
        )
        # The key of the program comes from the child: only who lowered it has its text.
        cache.keep(key, program, fit)
    notes = [*fit.notes, *choice(experiment, chosen)]
    return replace(fit, capacity=capacity, price_per_hour=price_per_hour, notes=notes)


def _chosen(experiment: Experiment, target: Target, capacity: int | None) -> Experiment:
    """The experiment with what a run on such a device would choose."""
    try:
        return settled(experiment, target, capacity)
    # Its mesh or batch does not fit: who compiles it says more.
    except ValueError:
        return experiment


def record(fit: Fit, workdir: str | os.PathLike) -> None:
    """Writes a prediction to the directory of the run to come, as `--json` prints it: its report
    shows it beside what is measured. ValueError where the directory cannot be written."""
    try:
        # The run itself starts later, so its directory may not be there yet.
        Path(workdir).mkdir(parents=True, exist_ok=True)
        write_json(Path(workdir) / RECORD, fit.to_json())
    except OSError as error:
        raise ValueError(
            f"--workdir={workdir} cannot be written: {error}; choose another"
        ) from None
