"""Run directories without training, for tests of what reads them."""

from pathlib import Path

import jax

from research.experiment.config import Experiment
from research.objectives.choose import make_objective
from research.run.program import make_program
from research.run.session import Session, prepare
from research.run.start import open_data
from research.training.checkpoint import Checkpoints


def started_run(experiment: Experiment, workdir: Path) -> Session:
    """A run with everything that is there before its first step, and its first state saved as step
    0. No train step is compiled, which is what takes the time of a run."""
    corpus = open_data(experiment, workdir / "tokenizer")
    objective = make_objective(experiment.objective, corpus.tokenizer, experiment.model)
    program = make_program(experiment, objective)
    with (
        jax.set_mesh(program.mesh),
        Checkpoints(workdir / "checkpoints", experiment.checkpoint) as checkpoints,
    ):
        session, _ = prepare(experiment, workdir, corpus, program, checkpoints, False)
        session.save(session.state, 0, {})
        checkpoints.wait()
    return session
