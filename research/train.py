"""Trains what a config describes: python -m research.train --config=configs/quickstart.py
--workdir=runs/quickstart

A run is four hops: config -> experiment.py -> training/step.py (model + objective) -> run
directory. This file is the loop around them. A workdir that holds a run resumes it.
"""

from research import allocator

if __name__ == "__main__":
    allocator.restart_keeping_memory()  # before JAX is imported

import logging
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.experimental import multihost_utils
from ml_collections import config_flags

from research import command, tree
from research.data.corpus import Corpus
from research.data.documents import digest
from research.data.loader import train_batches
from research.data.mixture import Mixture
from research.data.packing import Chained
from research.devices.table import peak_flops
from research.experiment.config import Experiment, refused_changes
from research.files import read_json, write_json
from research.objectives.choose import make_objective
from research.parallel.mesh import place_batch
from research.parallel.processes import start_processes
from research.run.appraisal import evaluate, sample
from research.run.opened import keep_compiled_programs
from research.run.program import Program, make_program
from research.run.resolve import from_config
from research.run.start import first_state, open_data, resumed_state
from research.training.checkpoint import Checkpoints
from research.training.fingerprint import fingerprint
from research.training.flops import train_flops_per_token
from research.training.metrics import RunLog
from research.training.provenance import describe_run, write_provenance
from research.training.report import write_report
from research.training.state import TrainState

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "FILE.py or FILE.py:ARGUMENTS; --config.FIELD=VALUE overrides"
)
WORKDIR = flags.DEFINE_string("workdir", None, "the run directory; one that holds a run resumes it")
ALLOW_CHANGED = flags.DEFINE_bool(
    "allow_changed_config", False, "resume although the config differs"
)
PROFILE = flags.DEFINE_string(
    "profile", "", "START:STOP, the steps of which a trace for xprof is written"
)


@dataclass(frozen=True)
class Session:
    """A run that is ready to go: everything that can be wrong beforehand has been checked."""

    experiment: Experiment
    workdir: Path
    corpus: Corpus
    program: Program
    checkpoints: Checkpoints
    windows: Mixture
    heldout: Chained
    start_step: int
    state: TrainState
    notes: list[str]
    fingerprints: dict[str, str]

    def evaluate(self, state: TrainState, limit: int) -> dict[str, float]:
        """See `research.run.appraisal.evaluate`."""
        return evaluate(self.program, self.corpus, self.heldout, state, limit)


def main(arguments: list[str]) -> int:
    """Reads the flags and trains; the exit code."""
    if arguments:
        raise ValueError(
            f"unexpected argument {arguments[0]!r}; flags are --config, --workdir and --config.FIELD=VALUE"
        )
    config = command.read_config(CONFIG)
    if not WORKDIR.value:
        raise ValueError("give --workdir=FOLDER, such as --workdir=runs/quickstart")
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr
    )
    start_processes()
    profile = _profile_steps(PROFILE.value)
    return train(
        from_config(config), Path(WORKDIR.value), allow_changed=ALLOW_CHANGED.value, profile=profile
    )


def train(
    experiment: Experiment,
    workdir: Path,
    *,
    allow_changed: bool = False,
    profile: range = range(0),
    live: bool | None = None,
) -> int:
    """Trains, or goes on with what `workdir` holds; the exit code. ValueError for what is wrong
    before the first step.

    `live` chooses between a bar and lines, None by whether standard error is a terminal.
    """
    keep_compiled_programs()
    corpus = open_data(experiment, Path(workdir) / "tokenizer")
    program = make_program(experiment, make_objective(experiment.objective, corpus.tokenizer))
    with (
        jax.set_mesh(program.mesh),
        Checkpoints(Path(workdir) / "checkpoints", experiment.checkpoint) as checkpoints,
    ):
        session = prepare(experiment, Path(workdir), corpus, program, checkpoints, allow_changed)
        log = RunLog(
            workdir,
            experiment.train.steps,
            start_step=session.start_step,
            flops_per_token=train_flops_per_token(
                experiment.model, experiment.data.sequence_length
            ),
            peak_flops=_peak_flops(program),
            wandb=experiment.logging.wandb,
            config=experiment.to_json(),
            enabled=jax.process_index() == 0,
            live=live,
        )
        with log, command.StopRequest(jax.process_count() > 1) as request:
            announce(session, log)
            loop(session, log, request, profile)
        if jax.process_index() == 0:
            write_report(workdir)
    return command.DONE if request.received is None else request.exit_code


def loop(session: Session, log: RunLog, request: command.StopRequest, profile: range) -> TrainState:
    """Steps until the end or a request to stop, with what is due on the way; then a checkpoint. The
    last state."""
    e, program, state, step = session.experiment, session.program, session.state, session.start_step
    batches = train_batches(
        session.windows,
        program.objective.example,
        seed=e.train.seed,
        global_batch=program.batch_size,
        start_step=step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=e.data.threads,
    )
    tokens = program.batch_size * e.data.sequence_length
    with batches:
        while step < e.train.steps and not _stop_now(request, step):
            batch = place_batch(next(batches)[1], program.mesh, program.rules, program.batch_size)
            if step in profile and step == max(profile.start, session.start_step):
                jax.profiler.start_trace(str(session.workdir / "profile"))
            if step == session.start_step:
                with log.pause("compiling", steps=1):
                    state, metrics = jax.block_until_ready(program.train_step(state, batch))
            else:
                state, metrics = program.train_step(state, batch)
            step += 1
            if step - 1 in profile and step in (profile.stop, e.train.steps):
                jax.block_until_ready(state)
                jax.profiler.stop_trace()
                log.note(
                    f"wrote the trace of steps {profile.start} to {step} to {session.workdir / 'profile'}"
                )
            if step % e.train.log_every == 0 or step in (1, e.train.steps):
                log_step(session, log, step, metrics, tokens)
            if _due(step, e.train.eval_every) and step < e.train.steps:
                with log.pause("evaluating"):
                    log.evaluation(step, session.evaluate(state, e.train.eval_batches))
            if _due(step, e.train.sample_every) and step < e.train.steps:
                with log.pause("sampling"):
                    log_sample(session, log, state, step)
            if _due(step, e.checkpoint.every) and step < e.train.steps:
                with log.pause("saving"):
                    save(session, state, step)
    finish(session, log, state, step)
    return state


def finish(session: Session, log: RunLog, state: TrainState, step: int) -> None:
    """The last checkpoint, and for a run that came to its end an evaluation on all held-out data
    and a sample."""
    with log.pause("saving"):
        save(session, state, step)
        session.checkpoints.wait()
    if step >= session.experiment.train.steps and log.evaluated_step != step:
        with log.pause("evaluating"):
            log.evaluation(step, session.evaluate(state, 0))
        with log.pause("sampling"):
            log_sample(session, log, state, step)
    log.note(f"step {step:,} is saved in {session.workdir}")


def prepare(
    experiment: Experiment,
    workdir: Path,
    corpus: Corpus,
    program: Program,
    checkpoints: Checkpoints,
    allow_changed: bool,
) -> Session:
    """A new run, or the one in `workdir` from its newest good checkpoint. ValueError for what does
    not fit together."""
    length, overlap = (
        program.objective.window_length(experiment.data.sequence_length),
        program.objective.overlap,
    )
    windows = corpus.train_windows(length, overlap, experiment.train.seed, _tell_tokenizing)
    heldout = corpus.heldout_windows(length, overlap)
    fingerprints = {
        "tokenizer": corpus.tokenizer.fingerprint,
        "data": corpus.provenance["fingerprint"],
    }
    record = workdir / "config.json"
    if record.exists():
        _refuse_another_run(read_json(record), experiment.to_json(), allow_changed)
    restored = checkpoints.restore(program.stored(program.state))
    if restored is None:
        start_step, (state, notes) = 0, first_state(program)
        fingerprints |= base_fingerprint(state)
    else:
        (start_step, state, meta), notes = restored, []
        state = resumed_state(program, state)
        fingerprints |= base_fingerprint(state)
        for name, value in fingerprints.items():
            if meta[name] != value and not allow_changed:
                raise ValueError(
                    f"the {name} is not that of the run in {workdir} (fingerprint {value[:12]}, the run's "
                    f"{meta[name][:12]}); restore it, take another --workdir, or pass --allow_changed_config"
                )
    if jax.process_index() == 0:
        corpus.tokenizer.save(workdir / "tokenizer")
        write_json(record, experiment.to_json())
        parameters = tree.count(program.model.specs())
        facts = dict(
            seed=experiment.train.seed,
            dataset=corpus.provenance,
            tokenizer=fingerprints["tokenizer"],
        )
        parent = {"parent": experiment.init} if experiment.init else {}
        write_provenance(
            workdir, describe_run(**facts, parameters=parameters, **parent), start_step
        )
    return Session(
        experiment,
        workdir,
        corpus,
        program,
        checkpoints,
        windows,
        heldout,
        start_step,
        state,
        notes,
        fingerprints,
    )


def announce(session: Session, log: RunLog) -> None:
    """Says what will run."""
    program, data = session.program, session.experiment.data
    devices = (
        ", ".join(f"{name}:{size}" for name, size in program.mesh.shape.items() if size > 1)
        or "one device"
    )
    trained = tree.count(program.specs[0])
    share = f" trained beside {tree.count(program.model.specs()):,}" if program.specs[1] else ""
    log.note(
        f"{trained:,} parameters{share} on {devices}; batches of {program.batch_size} x "
        f"{data.sequence_length} tokens of {data.source}; {'resuming at' if session.start_step else 'from'} step {session.start_step:,}"
    )
    for line in session.notes:
        log.note(line)
    for line in program.whole_dimensions():
        log.note(f"not split: {line} does not divide")


def log_step(
    session: Session, log: RunLog, step: int, metrics: dict[str, jax.Array], tokens: int
) -> None:
    """Writes a step's metrics; ends the run where the loss is no number any more."""
    values = {name: value.item() for name, value in jax.device_get(metrics).items()}
    if math.isclose(
        values["nll"], values["loss"], rel_tol=1e-5
    ):  # they differ under label smoothing and the like
        del values["nll"]
    values["learning_rate"] = float(session.program.schedule(step - 1))
    peak = max(
        (device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()
    )
    if peak:  # a CPU does not tell
        values["memory_bytes"] = peak
    log.step(step, values, tokens)
    if not math.isfinite(values["loss"]):
        raise command.Stop(
            command.BUG,
            f"the loss is {values['loss']} at step {step}; the last checkpoint is from step {session.checkpoints.latest()}; "
            "lower config.optimizer.learning_rate or set config.optimizer.clip_norm",
        )


def log_sample(session: Session, log: RunLog, state: TrainState, step: int) -> None:
    """Writes down what the model makes of the config's prompt, for models that generate."""
    written = sample(session.program, session.corpus.tokenizer, state, step)
    if written is not None:
        log.sample(step, *written)


def save(session: Session, state: TrainState, step: int) -> None:
    """Starts to save the state, but for what is frozen, with the fingerprints of what it was
    trained on."""
    session.checkpoints.save(step, session.program.stored(state), session.fingerprints)


def base_fingerprint(state: TrainState) -> dict[str, str]:
    """{"base": digest of the frozen parameters' bits}, empty where nothing is frozen."""
    prints = fingerprint(state.frozen) if state.frozen else {}
    return (
        {"base": digest(*(f"{path} {bits}" for path, bits in prints.items()), "")} if prints else {}
    )


def _refuse_another_run(old: dict[str, Any], new: dict[str, Any], allow_changed: bool) -> None:
    changes = refused_changes(old, new)
    if changes and not allow_changed:
        raise ValueError(
            f"the workdir holds a run with another config ({'; '.join(changes)}); "
            "take another --workdir, or pass --allow_changed_config"
        )


def _tell_tokenizing(done: int, documents: int) -> None:
    print(
        f"\rtokenizing {done:,} of {documents:,} documents",
        end="\n" if done == documents else "",
        file=sys.stderr,
    )


def _peak_flops(program: Program) -> float | None:
    device = program.mesh.devices.flat[0]
    peak = peak_flops(device.device_kind, program.experiment.precision.compute)
    return peak and peak * program.mesh.size


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _stop_now(request: command.StopRequest, step: int) -> bool:
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point(step)
    return request.received is not None


def _profile_steps(text: str) -> range:
    start, _, stop = text.partition(":")
    if text and not (start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise ValueError(f"--profile={text!r} must be START:STOP, two steps, such as 10:15")
    return range(int(start), int(stop)) if text else range(0)


if __name__ == "__main__":
    command.run(main)
