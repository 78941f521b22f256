"""Preparation of a run: its data and state, and the files in its directory that describe it."""

import logging
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax

from research import tree
from research.data.corpus import Corpus
from research.data.mixture import Mixture
from research.experiment.config import Experiment
from research.files import building, write_json
from research.interop.load import read_generation
from research.interop.restored import tokenizer_prints
from research.interop.storage.generation import FILE as GENERATION
from research.run.appraisal import Appraisal, make_appraisal
from research.run.epochs import reading, training_windows
from research.run.feed import Feed
from research.run.least_time import least_time
from research.run.program import Program
from research.run.reference_scores import ReferenceScores, first_print
from research.run.resumed import changes, compare_configs, config_before, refuse_other_inputs
from research.run.sampler import rollout_feed
from research.run.start import first_state, resumed_state
from research.run.window_feed import WindowFeed
from research.training.checkpoint import Checkpoints
from research.training.fingerprint import combined
from research.training.provenance import describe_run, write_provenance
from research.training.state import TrainState
from research.training.watchdog import Watchdog


@dataclass(frozen=True)
class Session:
    """A run that is ready to start: everything that can be checked before a step has been.

    start_step     number of steps done so far; `state` is the state after them
    feed_state     the `Feed.state()` that was saved with that step
    notes          lines for the user on where the first state comes from
    fingerprints   hexadecimal digests of "tokenizer", "data" and, with frozen weights, "base", with
                   a cached reference "reference"; a resumed run must have the same ones
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
        """Starts to save the state, and in `meta` what a resumed run must agree with: fingerprints,
        config, rows of a batch and the feed's state. Frozen weights that can be read again from
        `config.init` or the seed are left out."""
        meta: dict[str, Any] = dict(self.fingerprints)
        meta |= {"config": self.experiment.to_json(), "batch_size": self.program.batch_size}
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
    watchdog: Watchdog | None = None,
) -> tuple[Session, Feed]:
    """The session of a run and the feed of its training data, in the part "start" of the run and,
    where the first state is made or read, "restore".

    If `workdir` holds a run, the session continues it from its newest good checkpoint. Unless
    `allow_changed`, ValueError if its config, tokenizer, data or frozen weights have changed.
    """
    objective, watchdog = program.objective, watchdog or Watchdog()
    length = objective.window_length(experiment.data.sequence_length)
    windows = training_windows(program, corpus, partial(_tell_tokenizing, watchdog))
    _warn(objective.shortfalls(windows))
    heldout = corpus.heldout_windows(length, objective.overlap)
    # For its errors, before the checkpoint is read, which may take long.
    appraisal = make_appraisal(program, corpus, heldout, workdir)
    # Everything is compared before anything is written, so a refusal leaves the run as it is. The
    # config comes before the arrays: the names of two fields say more than shapes that differ.
    saved = checkpoints.meta()
    before = config_before(workdir, saved)
    notes = [] if allow_changed else compare_configs(experiment, workdir, program, saved, before)
    with watchdog.during("restore"):
        start_step, state, meta, more_notes = _restore_or_begin(program, checkpoints)
    fingerprints = _fingerprints(program, corpus, state, meta)
    if meta and not allow_changed:
        refuse_other_inputs(workdir, meta, fingerprints)
    notes += more_notes + changes(program, before, meta, start_step)
    if objective.reads_reference:
        scores = _reference(program, corpus, state, start_step, fingerprints["reference"])
        windows, heldout, line = scores.add(windows, heldout)
        appraisal = make_appraisal(program, corpus, heldout, workdir)
        notes.append(line)
    documents = sum(len(source.train) for source, _ in corpus.sources)
    notes.append(reading(program, documents, sum(windows.sizes)))
    notes += least_time(program, program.experiment.train.steps - start_step)
    # Processes share the workdir, so one of them writes.
    if jax.process_index() == 0:
        _record(experiment, workdir, corpus, program, start_step)
    made = experiment, workdir, corpus, program, checkpoints, appraisal
    begun = start_step, state, meta.get("feed", {}), notes, fingerprints
    return Session(*made, *begun), _feed(program, corpus, windows)


def _reference(
    program: Program, corpus: Corpus, state: TrainState, start_step: int, wanted: str
) -> ReferenceScores:
    """What adds log-probabilities of the reference to windows. A resumed run whose cache was
    emptied makes the first state again."""

    def first() -> tuple[tree.Tree, tree.Tree]:
        """(trainable, base) of the run's first state."""
        begun = first_state(program)[0] if start_step else state
        if first_print(begun) != wanted:
            raise ValueError(
                f"config.init={program.experiment.init!r} is not what the run began from, and the "
                "reference's log-probabilities are no longer cached; restore it"
            )
        return begun.trainable, begun.held["base"]

    return ReferenceScores(program, wanted, first, corpus.cache)


def _feed(program: Program, corpus: Corpus, windows: Mixture) -> Feed:
    """The feed of training data: windows, or what the model writes for them."""
    e, objective = program.experiment, program.objective
    if objective.writes_texts:
        if e.skip.then == "rewind":
            raise ValueError(
                f"config.skip.then=rewind passes over data, and objective {e.objective.name} makes "
                "its own; set config.skip.then=stop"
            )
        return rollout_feed(program, corpus.tokenizer, windows)
    size, threads = program.batch_size, e.data.threads
    return WindowFeed(windows, objective, e.train.seed, size, threads, program.part)


def _warn(lines: list[str]) -> None:
    for line in lines:
        logging.warning(line)


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
    # A later start reads the tokenizer from here, so a changed or missing source does not change
    # it.
    if not (workdir / "tokenizer").is_dir():
        with building(workdir / "tokenizer") as folder:
            corpus.tokenizer.save(folder)
    generation = read_generation(experiment.init) if experiment.init and not start_step else {}
    if generation:  # kept, as the model made of the checkpoint ends and is drawn from alike
        write_json(workdir / GENERATION, generation)
    write_json(workdir / "config.json", experiment.to_json())
    facts: dict[str, Any] = {
        "seed": experiment.train.seed,
        "dataset": corpus.provenance,
        "tokenizer": corpus.tokenizer.fingerprint,
        "parameters": tree.count(program.model.specs()),
        "trained_parameters": tree.count(program.trainable_specs),
    }
    if experiment.init:
        facts["parent"] = experiment.init
    write_provenance(workdir, describe_run(**facts), start_step)


def _fingerprints(
    program: Program, corpus: Corpus, state: TrainState, meta: dict[str, Any]
) -> dict[str, str]:
    """Digests of "tokenizer", "data", unless everything is trained the bits of the "base", and
    those of a "reference" that is cached, which is the first state or on record in `meta`."""
    # The base is not in every checkpoint, so a changed source would go unnoticed without this.
    base, prints = state.held["base"], {}
    if program.objective.reads_reference:
        prints["reference"] = meta.get("reference") or first_print(state)
    return {
        **prints,
        **tokenizer_prints(corpus.tokenizer),
        "data": corpus.provenance["fingerprint"],
        **({"base": combined(base)} if base else {}),
    }


def _tell_tokenizing(watchdog: Watchdog, done: int, documents: int) -> None:
    watchdog.alive()
    # The carriage return overwrites the line until the last one.
    end = "\n" if done == documents else ""
    print(f"\rtokenizing {done:,} of {documents:,} documents", end=end, file=sys.stderr)
