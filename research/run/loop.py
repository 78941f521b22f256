"""The training loop: steps over a feed, with evaluations, samples and checkpoints between them."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from research import command
from research.data.corpus import Corpus
from research.devices.table import peak_flops
from research.experiment.config import Experiment
from research.objectives.choose import make_objective
from research.ops.kernels.notes import CannotServe
from research.posttrain.rewards import RewardFailed
from research.run.epochs import with_steps
from research.run.feed import Feed
from research.run.lines import announce, log_sample, log_step
from research.run.opened import keep_compiled_programs
from research.run.program import Program, make_program, take_step
from research.run.saving import save
from research.run.session import Session, prepare
from research.run.settled import Predict, settle
from research.run.start import open_data
from research.run.step_trace import StepTrace
from research.run.watched_feed import WatchedFeed
from research.run.workdir import locked, refuse_lost_checkpoints
from research.training.checkpoint import Checkpoints
from research.training.flops import train_flops_per_token
from research.training.metrics import RunLog
from research.training.report import write_report
from research.training.state import TrainState


@dataclass(frozen=True)
class Result:
    """What `train` returns.

    step        number of steps done
    metrics     the last value of each metric by name, evaluations included
    exit_code   for the process to exit with, see `research.command`
    """

    step: int
    metrics: dict[str, float]
    exit_code: int


def train(
    experiment: Experiment,
    workdir: Path,
    *,
    allow_changed: bool = False,
    profile: range = range(0),
    live: bool | None = None,
    predict: Predict | None = None,
    until: int = 0,
) -> Result:
    """Trains a new run in `workdir`, or resumes the run there.

    allow_changed   resume although the config or the data differ from those of the run
    profile         the steps to trace with the profiler
    live            True shows a progress bar, False prints lines; None chooses the bar if standard
                    error is a terminal
    predict         what is expected of the run, and chosen where its config leaves that open
    until           step after which to save and leave off, as at a request to stop; 0 for the last

    ValueError, before the first step, for settings and data that do not fit.

        train(from_config(get_config("smoke")), Path("runs/smoke")).metrics["eval/loss"]
    """
    workdir = Path(workdir)
    refuse_lost_checkpoints(workdir)
    keep_compiled_programs()
    experiment, remarks = settle(experiment, workdir, predict)
    # Data come before the program, because the objective needs the tokenizer.
    corpus = open_data(experiment, workdir / "tokenizer")
    program = _make_program(experiment, corpus)
    experiment = program.experiment
    with (
        # One process of a job locks for all.
        locked(workdir, enabled=jax.process_index() == 0),
        jax.set_mesh(program.mesh),
        Checkpoints(workdir / "checkpoints", experiment.checkpoint) as checkpoints,
    ):
        session, feed = prepare(experiment, workdir, corpus, program, checkpoints, allow_changed)
        log = _open_log(session, live)
        with log, command.StopRequest(jax.process_count() > 1) as request, _in_mid_run():
            announce(session, log)
            for line in remarks:
                log.note(line)
            step, metrics = loop(session, feed, log, request, profile, until)
        # After the log is closed, so that the page shows every row.
        if jax.process_index() == 0:
            write_report(workdir)
    # That of a preempted run asks the launcher to start it again.
    exit_code = command.DONE if request.received is None else request.exit_code
    return Result(step, metrics, exit_code)


def _make_program(experiment: Experiment, corpus: Corpus) -> Program:
    """The program of a run, with the steps that its epochs are."""
    objective = make_objective(experiment.objective, corpus.tokenizer, experiment.model)
    program = make_program(experiment, objective)
    if experiment.train.epochs:
        program = make_program(with_steps(program, corpus), program.objective)
    return program


@contextmanager
def _in_mid_run() -> Iterator[None]:
    """A context whose ValueErrors are failures of the run. Before the first step they stand for
    mistakes in the settings, which a launcher must not start again."""
    try:
        yield
    except CannotServe:
        raise  # seen when the first step is traced
    except RewardFailed as error:
        # Its line names the record; only what a user's own function raised has a place in code.
        raise command.Stop(command.BUG, f"the run failed: {error}") from error.__cause__
    except ValueError as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise command.Stop(command.BUG, f"the run failed: {reason}") from error


def _open_log(session: Session, live: bool | None) -> RunLog:
    e = session.experiment
    return RunLog(
        session.workdir,
        e.train.steps,
        start_step=session.start_step,
        flops_per_token=train_flops_per_token(e.model, e.data.sequence_length),
        peak_flops=_peak_flops(session.program),
        wandb=e.logging.wandb,
        config=e.to_json(),
        # One process writes the files of the run; the others would write the same lines.
        enabled=jax.process_index() == 0,
        live=live,
    )


def loop(
    session: Session,
    feed: Feed,
    log: RunLog,
    request: command.StopRequest,
    profile: range,
    until: int = 0,
) -> tuple[int, dict[str, float]]:
    """Trains until the last step, the step `until` or a request to stop, then saves a checkpoint.

    Returns (number of steps done, last value of each metric by name). The step that `request` stops
    at is saved too, so no step is lost.
    """
    e, program, state, step = session.experiment, session.program, session.state, session.start_step
    trace = StepTrace(profile, step, e.train.steps, session.workdir / "profile")
    last: dict[str, float] = {}
    end = min(until or e.train.steps, e.train.steps)
    feed.begin(step, session.feed_state)
    feed = WatchedFeed(feed, log.events.waiting)
    with feed:
        # What the texts of the first model are worth is what the run is compared with.
        if not step and program.objective.writes_texts:
            with log.pause("evaluating"):
                log.evaluation(step, session.appraisal(state, step, e.train.eval_batches))
        while step < end and not _stop_now(request, step):
            trace.before(step)
            # The first call compiles. Waiting for it keeps that time out of the reported speed.
            if step == session.start_step:
                with log.pause("compiling", steps=1):
                    state, metrics = jax.block_until_ready(take_step(program, state, feed))
            else:
                state, metrics = take_step(program, state, feed)
            step += 1
            trace.after(step, state, log)
            # The first step is logged whatever the interval, so that a run shows a sign of life
            # early.
            if step % e.train.log_every == 0 or step in (1, e.train.steps):
                last |= log_step(session, log, step, metrics, feed.values())
            # What is due after the last step is done by `_finish`, once and on all held-out data.
            if step < e.train.steps:
                last |= _between_steps(session, feed, log, state, step)
        last |= _finish(session, feed, log, state, step)
    return step, last


def _between_steps(
    session: Session, feed: Feed, log: RunLog, state: TrainState, step: int
) -> dict[str, float]:
    """Evaluation, sample and checkpoint, each if due after this step; returns the values of the
    evaluation or {}."""
    e, values = session.experiment, {}
    # Saved last, so that a process killed in between repeats the evaluation and does not lose it.
    if _due(step, e.train.eval_every):
        with log.pause("evaluating"):
            values = session.appraisal(state, step, e.train.eval_batches)
            log.evaluation(step, values)
    if _due(step, e.train.sample_every):
        with log.pause("sampling"):
            log_sample(session, log, state, step, feed.samples())
    if _due(step, e.checkpoint.every):
        with log.pause("saving"):
            save(session, log, state, step, feed.state())
    return values


def _finish(
    session: Session, feed: Feed, log: RunLog, state: TrainState, step: int
) -> dict[str, float]:
    """Saves the last checkpoint. After the last step of the run, also evaluates on all held-out
    data and writes a sample; returns the values of the evaluation or {}."""
    values: dict[str, float] = {}
    log.events.step(step)
    with log.pause("saving"):
        save(session, log, state, step, feed.state())
        # A process that ends during an asynchronous save would lose that checkpoint.
        session.checkpoints.wait()
    # A finished run that is started again has this evaluation in its log already.
    if step >= session.experiment.train.steps and log.evaluated_step != step:
        with log.pause("evaluating"):
            values = session.appraisal(state, step, 0)
            log.evaluation(step, values)
        with log.pause("sampling"):
            log_sample(session, log, state, step, feed.samples())
    log.note(f"step {step:,} is saved in {session.workdir}")
    return values


def _peak_flops(program: Program) -> float | None:
    """Published peak FLOP/s of all devices of the mesh together; None for unknown devices."""
    device = program.mesh.devices.flat[0]
    peak = peak_flops(device.device_kind, program.experiment.precision.compute)
    # The type of the products decides: a chip multiplies bfloat16 faster than float32.
    return peak and peak * program.mesh.size


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _stop_now(request: command.StopRequest, step: int) -> bool:
    # Several processes leave signals to jax.distributed: all must leave the loop at the same step.
    if jax.process_count() > 1:
        if not multihost_utils.reached_preemption_sync_point(step):
            return False
        # The notifier has taken the signal, so the request does not know of it.
        request.received = request.received or signal.SIGTERM
    return request.received is not None
