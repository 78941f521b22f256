"""The training loop: steps over a feed, with evaluations, samples and checkpoints between them."""

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from research import command
from research.data.corpus import Corpus
from research.experiment.config import Experiment
from research.objectives.choose import make_objective
from research.ops.kernels.notes import CannotServe
from research.posttrain.rewards import RewardFailed
from research.run.attended import Attended
from research.run.epochs import with_steps
from research.run.feed import Feed
from research.run.lines import announce, log_sample, log_step, open_log
from research.run.opened import keep_compiled_programs
from research.run.program import Program, make_program, take_step
from research.run.rewind import Rewind, rewound
from research.run.saving import save
from research.run.session import Session, prepare
from research.run.settled import Predict, settle
from research.run.start import open_data
from research.run.step_trace import StepTrace
from research.run.teacher import with_teacher
from research.run.watched_feed import WatchedFeed
from research.run.workdir import locked, refuse_lost_checkpoints
from research.stopping import StopRequest
from research.training.checkpoint import Checkpoints
from research.training.metrics import RunLog
from research.training.report import write_report
from research.training.state import TrainState
from research.training.watchdog import Watchdog


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
    with (
        StopRequest(jax.distributed.is_initialized()) as request,
        Watchdog(experiment.watchdog) as watchdog,
    ):
        attended = Attended(request, watchdog, profile, live, until)
        return _train(experiment, Path(workdir), attended, allow_changed, predict)


def _train(
    experiment: Experiment,
    workdir: Path,
    attended: Attended,
    allow_changed: bool,
    predict: Predict | None,
) -> Result:
    refuse_lost_checkpoints(workdir)
    keep_compiled_programs()
    experiment, remarks = settle(experiment, workdir, predict)
    # Data come before the program, because the objective needs the tokenizer.
    corpus = open_data(experiment, workdir / "tokenizer")
    program = _make_program(experiment, corpus)
    experiment, watchdog = program.experiment, attended.watchdog
    with (
        # One process of a job locks for all.
        locked(workdir, enabled=jax.process_index() == 0),
        jax.set_mesh(program.mesh),
        Checkpoints(workdir / "checkpoints", experiment.checkpoint) as checkpoints,
    ):
        made = experiment, workdir, corpus, program, checkpoints
        rewind, times = None, Counter[int]()
        while True:
            session, feed = prepare(*made, allow_changed, watchdog)
            session = rewound(session, rewind, times)
            log = open_log(session, attended.live)
            with log, attended.request.polled(), _in_mid_run():
                announce(session, log)
                for line in remarks:
                    log.note(line)
                try:
                    step, metrics = loop(session, feed, log, attended)
                    break
                except Rewind as asked:
                    rewind = asked
                    session = feed = None  # their arrays, before those of the next are made
        # After the log is closed, so that the page shows every row.
        if jax.process_index() == 0:
            write_report(workdir)
    # A run that was stopped exits with the code that asks its launcher to start it again.
    finished = step >= experiment.train.steps and log.evaluated_step == step
    stopped = attended.request.received is not None and not finished
    return Result(step, metrics, command.RETRY if stopped else command.DONE)


def _make_program(experiment: Experiment, corpus: Corpus) -> Program:
    """The program of a run, with the steps that its epochs are."""
    objective = make_objective(experiment.objective, corpus.tokenizer, experiment.model)
    objective = with_teacher(experiment, objective, corpus.tokenizer)
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
        code = command.RETRY if command.collective_failed(error) else command.BUG
        raise command.Stop(code, f"the run failed: {reason}") from error


def loop(
    session: Session, feed: Feed, log: RunLog, attended: Attended
) -> tuple[int, dict[str, float]]:
    """Trains until the last step, the step `until` or a request to stop, then saves a checkpoint.

    Returns (number of steps done, last value of each metric by name). The step that `request` stops
    at is saved too, so no step is lost.
    """
    e, program, state, step = session.experiment, session.program, session.state, session.start_step
    trace = StepTrace(attended.profile, step, e.train.steps, session.workdir / "profile")
    watchdog, last = attended.watchdog, {}
    end = min(attended.until or e.train.steps, e.train.steps)
    feed.begin(step, session.feed_state)
    feed = WatchedFeed(feed, log.events.waiting)
    with feed, watchdog.during("step"):
        if _owes_evaluation(session, log):
            with attended.pause(log, "evaluating", "evaluate"), attended.request.abandoned():
                log.evaluation(step, session.appraisal(state, step, e.train.eval_batches))
        while step < end and not _stop_now(attended.request, step):
            trace.before(step)
            # The first call compiles. Waiting for it keeps that time out of the reported speed.
            if step == session.start_step:
                with log.pause("compiling", steps=1), watchdog.during("compile"):
                    state, metrics = jax.block_until_ready(take_step(program, state, feed))
            else:
                state, metrics = take_step(program, state, feed)
                watchdog.dispatched(metrics)
            step += 1
            trace.after(step, state, log)
            # The first step is logged whatever the interval, so that a run shows a sign of life
            # early.
            if step % e.train.log_every == 0 or step in (1, e.train.steps):
                watchdog.drain()
                last |= log_step(session, log, step, metrics, feed.values())
            # What is due after the last step is done by `_finish`, once and on all held-out data.
            if step < e.train.steps:
                last |= _between_steps(session, feed, log, attended, state, step)
        last |= _finish(session, feed, log, attended, state, step)
    return step, last


def _owes_evaluation(session: Session, log: RunLog) -> bool:
    """True if the first state is to be evaluated: that of a model whose texts the run improves,
    which is what it is compared with, and one whose evaluation a signal has cut short."""
    step, train = session.start_step, session.experiment.train
    if not step:
        return session.program.objective.writes_texts
    return step < train.steps and _due(step, train.eval_every) and log.evaluated_step != step


def _between_steps(
    session: Session, feed: Feed, log: RunLog, attended: Attended, state: TrainState, step: int
) -> dict[str, float]:
    """Evaluation, sample and checkpoint, each if due after this step; returns the values of the
    evaluation or {}."""
    e, request, values = session.experiment, attended.request, {}
    # Saved last, so that a process killed in between repeats the evaluation and does not lose it.
    if _due(step, e.train.eval_every):
        with attended.pause(log, "evaluating", "evaluate"), request.abandoned():
            values = session.appraisal(state, step, e.train.eval_batches)
            log.evaluation(step, values)
    if _due(step, e.train.sample_every) and request.received is None:
        with attended.pause(log, "sampling", "evaluate"), request.abandoned():
            log_sample(session, log, state, step, feed.samples())
    if _due(step, e.checkpoint.every):
        with attended.pause(log, "saving", "save"):
            save(session, log, state, step, feed.state())
    return values


def _finish(
    session: Session, feed: Feed, log: RunLog, attended: Attended, state: TrainState, step: int
) -> dict[str, float]:
    """Saves the last checkpoint. After the last step of the run, unless it is asked to stop, also
    evaluates on all held-out data and writes a sample; returns the values of the evaluation or
    {}."""
    values: dict[str, float] = {}
    request = attended.request
    log.events.step(step)
    with attended.pause(log, "saving", "save"):
        save(session, log, state, step, feed.state())
        # A process that ends during an asynchronous save would lose that checkpoint.
        session.checkpoints.wait()
    # A finished run that is started again has this evaluation in its log already.
    unevaluated = step >= session.experiment.train.steps and log.evaluated_step != step
    if unevaluated and request.received is None:
        with attended.pause(log, "evaluating", "evaluate"), request.abandoned():
            values = session.appraisal(state, step, 0)
            log.evaluation(step, values)
    if unevaluated and request.received is None:
        with attended.pause(log, "sampling", "evaluate"), request.abandoned():
            log_sample(session, log, state, step, feed.samples())
    log.note(f"step {step:,} is saved in {session.workdir}")
    return values


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _stop_now(request: StopRequest, step: int) -> bool:
    # Several processes leave signals to jax.distributed: all must leave the loop at the same step.
    if jax.process_count() > 1:
        if not multihost_utils.reached_preemption_sync_point(step):
            return False
        # The notifier has taken the signal, so the request does not know of it.
        request.received = signal.SIGTERM
    return request.received is not None
