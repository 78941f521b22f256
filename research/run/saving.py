"""Saving the state of a run: only states that can be trained on, and not on a disk without room."""

import shutil

import jax

from research import command
from research.experiment.config import Experiment
from research.run.session import Session
from research.training.finite import nonfinite, shown
from research.training.metrics import RunLog
from research.training.state import TrainState


def save(session: Session, log: RunLog, state: TrainState, step: int, feed_state: dict) -> None:
    """Starts to save the state after `step` steps, with the state of the feed.

    Raises `command.Stop` if a trained parameter or a number of the optimizer is NaN or infinite.
    The loss does not show that, because it is computed before the update. All saved states are
    therefore finite, and `checkpoint.keep` never deletes the last good one for a bad one.
    """
    stored = session.program.to_stored(state)
    odd = nonfinite(stored)
    if odd:
        session.checkpoints.wait()  # for the save that may be in progress
        last = session.checkpoints.latest()
        good = f"step {last} is saved and finite" if last else "no step is saved"
        raise command.Stop(
            command.BUG,
            f"step {step} is not saved, because it made numbers NaN or infinite, in {shown(odd)}; "
            f"{good}; {remedy(session.experiment)}",
        )
    _warn_of_space(session, log, stored)
    session.save(state, step, feed_state)


def remedy(experiment: Experiment) -> str:
    """What to change in a run whose numbers have become NaN or infinite."""
    precision, optimizer = experiment.precision, experiment.optimizer
    for name in ("param", "compute"):
        # Above 65,504 float16 is infinite, and below 6e-8 it is 0, as Adam's eps of 1e-8 is.
        if getattr(precision, name) == "float16":
            return f"set config.precision.{name}=bfloat16 or float32"
    if optimizer.clip_norm is None:
        return "set config.optimizer.clip_norm=1.0 or lower config.optimizer.learning_rate"
    return f"lower config.optimizer.learning_rate, which is {optimizer.learning_rate:g}"


def _warn_of_space(session: Session, log: RunLog, stored: dict) -> None:
    """Notes that the disk has no room for two more checkpoints, if that is so."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(stored))
    # Twice, because a new step is complete before an old one is deleted.
    free = shutil.disk_usage(session.workdir).free
    if free < 2 * size:
        log.note(
            f"the disk of {session.workdir} has {free / 1e6:,.0f} MB left; a checkpoint takes "
            f"{size / 1e6:,.0f} MB, and replacing one needs twice that"
        )
