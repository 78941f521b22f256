"""Preparation of a run: its data and state, and the files in its directory that describe it."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from research import tree
from research.data.corpus import Corpus
from research.data.documents import digest
from research.experiment.config import Experiment, refused_changes
from research.files import read_json, write_json
from research.interop.load import read_generation
from research.interop.storage.generation import FILE as GENERATION
from research.run.appraisal import Appraisal, make_appraisal
from research.run.program import Program
from research.run.start import first_state, resumed_state
from research.run.window_feed import WindowFeed
from research.training.checkpoint import Checkpoints
from research.training.fingerprint import fingerprint
from research.training.provenance import describe_run, write_provenance
from research.training.state import TrainState


@dataclass(frozen=True)
class Session:
    """A run that is ready to start; all that can be checked before the first step has been.

    start_step     number of steps done, after which `state` is the state
    feed_state     the feed's `state()` saved with that step
    notes          lines for the user on where the first state comes from
    fingerprints   of tokenizer, data and base, which must be the same when a run is resumed
    """

    experiment: Experiment
    workdir: Path
    corpus: Corpus
    program: Program
    checkpoints: Checkpoints
    appraisal: Appraisal
    start_step: int
    state: TrainState
    feed_state: dict[str, Any]
    notes: list[str]
    fingerprints: dict[str, str]

    def save(self, state: TrainState, step: int, feed_state: dict[str, Any]) -> None:
        """Starts to save the state, the feed's state and the fingerprints. A base that can be read
        again from its source is left out."""
        meta: dict[str, Any] = dict(self.fingerprints)
        if feed_state:
            meta["feed"] = feed_state
        self.checkpoints.save(step, self.program.to_stored(state), meta)


def prepare(
    experiment: Experiment,
    workdir: Path,
    corpus: Corpus,
    program: Program,
    checkpoints: Checkpoints,
    allow_changed: bool,
) -> tuple[Session, WindowFeed]:
    """(session of a new run, or of the one in `workdir` at its newest good checkpoint; the feed of
    its corpus).

    ValueError, unless `allow_changed`, if the config, tokenizer, data or base differ from those of
    the run in `workdir`.
    """
    objective = program.objective
    length = objective.window_length(experiment.data.sequence_length)
    windows = corpus.train_windows(
        length, objective.overlap, experiment.train.seed, _tell_tokenizing
    )
    heldout = corpus.heldout_windows(length, objective.overlap)
    appraisal = make_appraisal(program, corpus, heldout)
    record = workdir / "config.json"
    if record.exists():
        _refuse_another_run(read_json(record), experiment.to_json(), allow_changed)
    start_step, state, meta, notes = _restore_or_begin(program, checkpoints)
    fingerprints = {
        "tokenizer": corpus.tokenizer.fingerprint,
        "data": corpus.provenance["fingerprint"],
        **_base_fingerprint(state),
    }
    # Compared before anything is written, so a refusal leaves the run as it is.
    if meta and not allow_changed:
        _refuse_other_inputs(workdir, meta, fingerprints)
    if jax.process_index() == 0:
        _record(experiment, workdir, corpus, program, start_step)
    session = Session(
        experiment,
        workdir,
        corpus,
        program,
        checkpoints,
        appraisal,
        start_step,
        state,
        meta.get("feed", {}),
        notes,
        fingerprints,
    )
    seed, threads = experiment.train.seed, experiment.data.threads
    return session, WindowFeed(windows, objective, seed, program.batch_size, threads)


def _restore_or_begin(
    program: Program, checkpoints: Checkpoints
) -> tuple[int, TrainState, dict[str, Any], list[str]]:
    """(step, state, the checkpoint's `meta` or {} for a new run, lines for the user)."""
    restored = checkpoints.restore(program.to_stored(program.state))
    if restored is None:
        state, notes = first_state(program)
        return 0, state, {}, notes
    step, stored, meta = restored
    return step, resumed_state(program, stored), meta, []


def _record(
    experiment: Experiment, workdir: Path, corpus: Corpus, program: Program, start_step: int
) -> None:
    """Writes tokenizer, config.json and provenance.json of the run, and how the checkpoint it
    starts from generates."""
    corpus.tokenizer.save(workdir / "tokenizer")
    generation = read_generation(experiment.init) if experiment.init and not start_step else {}
    if generation:  # kept, as the model made of the checkpoint ends and is drawn from alike
        write_json(workdir / GENERATION, generation)
    write_json(workdir / "config.json", experiment.to_json())
    facts: dict[str, Any] = {
        "seed": experiment.train.seed,
        "dataset": corpus.provenance,
        "tokenizer": corpus.tokenizer.fingerprint,
        "parameters": tree.count(program.model.specs()),
    }
    if experiment.init:
        facts["parent"] = experiment.init
    write_provenance(workdir, describe_run(**facts), start_step)


def _base_fingerprint(state: TrainState) -> dict[str, str]:
    """{"base": digest of the base's bits}, {} where everything is trained."""
    base = state.held["base"]
    prints = fingerprint(base) if base else {}
    lines = (f"{path} {bits}" for path, bits in prints.items())
    return {"base": digest(*lines, "")} if prints else {}


def _refuse_another_run(old: dict[str, Any], new: dict[str, Any], allow_changed: bool) -> None:
    changes = refused_changes(old, new)
    if changes and not allow_changed:
        raise ValueError(
            f"the workdir holds a run with another config ({'; '.join(changes)}); "
            "take another --workdir, or pass --allow_changed_config"
        )


def _refuse_other_inputs(workdir: Path, meta: dict[str, Any], fingerprints: dict[str, str]) -> None:
    for name, value in fingerprints.items():
        if meta[name] != value:
            raise ValueError(
                f"the {name} is not that of the run in {workdir} (fingerprint {value[:12]}, the "
                f"run's {meta[name][:12]}); restore it, take another --workdir, or pass "
                "--allow_changed_config"
            )


def _tell_tokenizing(done: int, documents: int) -> None:
    end = "\n" if done == documents else ""
    print(f"\rtokenizing {done:,} of {documents:,} documents", end=end, file=sys.stderr)
