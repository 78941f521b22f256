"""Settings that a run chooses at its first start and keeps: `execution.remat="auto"`,
`execution.head_tokens=0`, and the commit of an `init` of the hub."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from research.experiment.config import Experiment
from research.models.config import REMATS, Execution
from research.objectives.choose import objective_class
from research.ops.token_chunks import CHUNK
from research.run.pinned import pin_init
from research.run.resumed import read_config


@dataclass(frozen=True)
class Prediction:
    """What is expected of a run before it starts.

    experiment   with a choice for everything that was left open
    line         what it needs and what there is, one line for the user; "" where that is not known
    fits         whether that is enough
    """

    experiment: Experiment
    line: str = ""
    fits: bool = True


Predict = Callable[[Experiment], Prediction]
PLAIN = Execution("none", CHUNK)  # what holds where nobody chooses


def settle(
    experiment: Experiment, workdir: Path, predict: Predict | None
) -> tuple[Experiment, list[str]]:
    """(the experiment with nothing left open, lines for the log of the run). An init of the hub
    gets its commit.

    A run that `workdir` holds keeps what it chose, or what held before there was a choice; a new
    one takes what `predict` says, without it "none" and CHUNK. What does not fit is told at once,
    on standard error: where memory is short the kernel ends a process without a word.
    """
    experiment, pins = pin_init(experiment, workdir)
    experiment, choices = _settle_execution(experiment, workdir, predict)
    return experiment, pins + choices


def _settle_execution(
    experiment: Experiment, workdir: Path, predict: Predict | None
) -> tuple[Experiment, list[str]]:
    kept = _kept(workdir)
    if predict is None:
        return _with(experiment, kept or PLAIN), []
    prediction = predict(_with(experiment, kept))
    chosen = _agreed(_with(prediction.experiment, PLAIN))
    lines = choice(_with(experiment, kept), chosen)
    if not prediction.fits and jax.process_index() == 0:
        print(prediction.line, file=sys.stderr)
    return chosen, lines + ([prediction.line] if prediction.fits and prediction.line else [])


def _kept(workdir: Path) -> Execution | None:
    """The choice of the run in `workdir`; None for a new run."""
    file = workdir / "config.json"
    if not file.exists():
        return None
    values = read_config(file).get("execution", {})
    remat = values.get("remat", "none")
    return Execution("none" if remat == "auto" else remat, values.get("head_tokens") or CHUNK)


def _with(experiment: Experiment, choice: Execution | None) -> Experiment:
    """The experiment with the remat policy and the tokens of the head of `choice` where it leaves
    them open."""
    if choice is None:
        return experiment
    e = experiment.execution
    # A classifier has logits of whole texts alone, and refuses a number of tokens.
    objective = objective_class(experiment.objective.name)
    tokens = 0 if objective.classifies or objective.scores_texts else choice.head_tokens
    remat = choice.remat if e.remat == "auto" else e.remat
    return replace(
        experiment,
        execution=replace(e, remat=remat, head_tokens=e.head_tokens or tokens),
    )


def _agreed(chosen: Experiment) -> Experiment:
    """The choice of the first process in all of them: a device may have a little less memory than
    another, and all run one program."""
    if jax.process_count() == 1:
        return chosen
    e = chosen.execution
    numbers = np.array([REMATS.index(e.remat), e.head_tokens])
    remat, head_tokens = multihost_utils.broadcast_one_to_all(numbers)
    execution = replace(e, remat=REMATS[remat], head_tokens=int(head_tokens))
    return replace(chosen, execution=execution)


def choice(asked: Experiment, chosen: Experiment) -> list[str]:
    """A line for what was left open and is not what it is where nobody chooses."""
    before, after = asked.execution, chosen.execution
    words = []
    if before.remat == "auto" and after.remat != "none":
        words.append(f"execution.remat=auto is {after.remat!r}, the lightest that fits")
    if not before.head_tokens and after.head_tokens not in (0, CHUNK):
        words.append(f"execution.head_tokens=0 is {after.head_tokens:,}, the most that fit")
    return ["; ".join(words)] if words else []
