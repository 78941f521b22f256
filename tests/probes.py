"""What a run does, as values that can be compared: each function asks the code that does it, with
as little else as that code can stand.

All take an experiment, a folder with data, and pytest's monkeypatch.
"""

import dataclasses
import hashlib
import itertools
import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from research import command, tree
from research.data.mixture import Mixture
from research.experiment.config import Experiment
from research.fit.compile import abstract_batch, objective_without_data, trace
from research.infer.decode import Generation
from research.models import spec
from research.models.image_config import ImageConfig
from research.models.model import Model
from research.models.parameters import parameter_specs
from research.models.sound_config import SoundConfig
from research.objectives.choose import Objective
from research.parallel.axes import RULES
from research.parallel.mesh import make_mesh
from research.run import appraisal, lines, loop, sampler, session, start
from research.run.attended import Attended
from research.run.epochs import with_steps
from research.run.program import make_program, take_step
from research.run.repeated_feed import RepeatedFeed
from research.run.rewind import Rewind
from research.run.window_feed import WindowFeed
from research.stopping import StopRequest
from research.training import metrics, watchdog
from research.training.checkpoint import Checkpoints


def digest(closed, found=None) -> str:
    """A digest of a traced function: its text, and the values of its constants, which the text
    leaves out."""
    outer = found is None
    found = hashlib.sha1() if outer else found
    found.update(re.sub(r"0x[0-9a-f]+", "", str(closed.jaxpr)).encode())  # addresses of functions
    for constant in closed.consts:
        found.update(np.asarray(constant).tobytes())
    for equation in closed.jaxpr.eqns:
        for value in equation.params.values():
            for one in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(one, "consts") and hasattr(one, "jaxpr"):
                    digest(one, found)
    return found.hexdigest() if outer else ""


def objective_of(e: Experiment) -> Objective:
    """The objective with a tokenizer of which every other token begins a word."""
    objective = objective_without_data(e)
    if hasattr(objective, "word_starts") and objective.word_starts is not None:
        starts = np.arange(e.model.vocab_size) % 2 == 0
        objective = dataclasses.replace(objective, word_starts=starts)
    return objective


def program(e: Experiment, folder: Path, monkeypatch) -> object:
    """The step, the first state, where they are on the mesh, what checkpoints hold, and an example
    of the data."""
    p = make_program(e, objective_of(e), jax.devices()[: 2 if e.mesh else 1])
    batch = abstract_batch(p)
    with jax.set_mesh(p.mesh):
        begin = jax.jit(p.make_state).trace().jaxpr
    places = [str(leaf.sharding) for leaf in jax.tree.leaves((p.state, batch))]
    return (
        digest(trace(p).jaxpr),
        digest(begin),
        places,
        sorted(tree.paths(p.to_stored(p.state))),
        example(p.objective),
    )


def pictures(e: Experiment, folder: Path, monkeypatch) -> object:
    """What a model computes of a text with two images, with its parameters."""
    c = e.model
    params = spec.abstract(parameter_specs(c), np.float32)
    images = jax.ShapeDtypeStruct((1, 2, c.image.size, c.image.size, 3), np.uint8)
    tokens = jax.ShapeDtypeStruct((1, 40), np.int32)
    batch = {"inputs": tokens, "positions": tokens, "segments": tokens, "images": images}
    hidden = jax.jit(Model(c).hidden).trace(params, batch)
    return digest(hidden.jaxpr), str(jax.tree.leaves(params))


def sounds(e: Experiment, folder: Path, monkeypatch) -> object:
    """What a model computes of a text with two sounds, with its parameters."""
    c = e.model
    params = spec.abstract(parameter_specs(c), np.float32)
    mel = jax.ShapeDtypeStruct((1, 2, c.sound.frames, c.sound.mels), np.float32)
    tokens = jax.ShapeDtypeStruct((1, 40), np.int32)
    batch = {"inputs": tokens, "positions": tokens, "segments": tokens, "sounds": mel}
    hidden = jax.jit(Model(c).hidden).trace(params, batch)
    return digest(hidden.jaxpr), str(jax.tree.leaves(params))


def example(objective: Objective) -> dict[str, list]:
    """What an objective makes of 64 tokens, none of them special and every other an assistant's."""
    tokens = np.arange(64, dtype=np.int32) % 20 + 105
    window = {"tokens": tokens, "inputs": tokens, "targets": tokens}
    window |= {"assistant": tokens % 2, "label": np.zeros(1, np.int32)}
    window |= {"ends": np.zeros(2, np.int32)}
    ones = ("liked", "reference", "labels", "labelled")
    window |= {name: np.ones(64, np.int32) for name in ones}
    window["token_types"] = np.zeros(64, np.int32)
    window |= {"images": np.zeros((1, 2, 2, 3), np.uint8), "whole": np.ones(1, np.int32)}
    for side in ("", "inputs_", "targets_"):
        window[f"{side}segments"] = np.ones(64, np.int32)
        window[f"{side}positions"] = np.arange(64, dtype=np.int32)
    row = objective.example(window, np.random.default_rng(0))
    return {name: values.tolist() for name, values in row.items()}


def events(e: Experiment, folder: Path, monkeypatch) -> object:
    """What a training loop does at which step, and what it asks the model to write."""
    seen = []

    def note(*event):
        seen.append(event)
        return {}

    monkeypatch.setattr(loop, "take_step", lambda program, state, feed: (state, {}))
    monkeypatch.setattr(loop, "log_step", lambda s, log, step, *_: note("log", step))
    monkeypatch.setattr(loop, "save", lambda s, log, state, step, feed: note("save", step))
    monkeypatch.setattr(loop, "log_sample", lambda s, log, state, step, _: note("sample", step))
    run = SimpleNamespace(
        experiment=e,
        program=SimpleNamespace(objective=SimpleNamespace(writes_texts=False)),
        state=None,
        start_step=0,
        feed_state={},
        workdir=folder,
        appraisal=lambda state, step, limit: note("evaluate", limit),
        checkpoints=SimpleNamespace(wait=lambda: None),
    )
    quiet = SimpleNamespace(
        pause=lambda *_, **__: nullcontext(),
        events=SimpleNamespace(step=lambda _: None, waiting=nullcontext),
        note=lambda *_: None,
        evaluation=lambda step, _: note("evaluated", step),
        evaluated_step=None,
    )

    class Feed:
        begin = close = lambda *_: None
        state = values = dict
        samples = list
        __enter__ = lambda self: self
        __exit__ = lambda *_: None
        __next__ = lambda self: (0, None)

    loop.loop(run, Feed(), quiet, Attended(StopRequest()))

    def generate(model, params, tokenizer, prompts, config):
        note(*prompts, config)
        return [SimpleNamespace(text="")]

    monkeypatch.setattr(appraisal, "generate", generate)
    model = SimpleNamespace(experiment=e, objective=objective_of(e), model=None)
    appraisal.sample(model, None, SimpleNamespace(params=None), 1)
    return seen


def retention(e: Experiment, folder: Path, monkeypatch) -> object:
    """Which checkpoints are kept, as orbax is told, and when they are saved."""
    seen = events(e, folder, monkeypatch)
    options = {}
    with monkeypatch.context() as patch:
        patch.setattr(ocp, "CheckpointManager", lambda *_, **given: options.update(given))
        Checkpoints(folder / "checkpoints", e.checkpoint)
    return seen, options["options"].max_to_keep, options["options"].keep_period


# Fields of objectives on a model's own texts that are no part of their step.
SAMPLED = "samples max_tokens rewards updates staleness logprob_limit engine".split()


class Reached(BaseException):
    """Ends a call of `train` where it has shown enough."""


def trackers(e: Experiment, folder: Path, monkeypatch) -> object:
    """Whether `train` opens W&B."""

    def reach(*what):
        raise Reached(what[0])

    program = SimpleNamespace(mesh=make_mesh("", jax.devices()[:1]), experiment=e)
    begun = SimpleNamespace(start_step=0, experiment=e, workdir=folder / "run", program=program)
    for name, fake in {
        "refuse_lost_checkpoints": lambda *_: None,
        "keep_compiled_programs": lambda: None,
        "open_data": lambda *_: SimpleNamespace(tokenizer=None),
        "_make_program": lambda *_: program,
        "Checkpoints": lambda *_: nullcontext(),
        "prepare": lambda *_: (begun, None),
        "announce": lambda *_: reach("begun"),
    }.items():
        monkeypatch.setattr(loop, name, fake)
    monkeypatch.setattr(metrics, "open_wandb", lambda *_: reach("wandb"))
    monkeypatch.setattr(metrics, "open_tensorboard", lambda *_: (lambda *_: None, lambda: None))
    with pytest.raises(Reached) as caught:
        loop.train(e, folder / "run", live=False)
    return str(caught.value)


class Unread(list):
    """Windows that nobody reads, of one source."""

    sizes = (40,)


def data(e: Experiment, folder: Path, monkeypatch) -> object:
    """The sources, the tokenizer, the records that may be bad, and the threads that read ahead."""
    source = e.data.source if "/" in e.data.source else str(folder / "source.jsonl")
    opened = start.open_data(
        dataclasses.replace(
            e,
            data=dataclasses.replace(e.data, source=source),
            model=dataclasses.replace(e.model, vocab_size=512),
        )
    )
    corpus = SimpleNamespace(
        train_windows=lambda *_: Unread(),
        sources=(),
        heldout_windows=lambda *_: None,
        tokenizer=opened.tokenizer,
        provenance=opened.provenance,
    )
    for name, fake in {
        "make_appraisal": lambda *_: None,
        "_restore_or_begin": lambda *_: (0, SimpleNamespace(held={"base": {}}), {}, []),
        "_record": lambda *_: None,
        "least_time": lambda *_: [],
    }.items():
        monkeypatch.setattr(session, name, fake)
    fake = SimpleNamespace(objective=objective_of(e), batch_size=1, experiment=e, part=(0, 1))
    fake.mesh, fake.rules = make_mesh("", jax.devices()[:1]), RULES
    none = SimpleNamespace(meta=dict)
    _, feed = session.prepare(e, folder / "none", corpus, fake, none, False)
    assert isinstance(feed, WindowFeed)
    return (
        opened.provenance["fingerprint"],
        opened.tokenizer.fingerprint,
        opened.tokenizer.chat_template,
        opened._options(1, 0).max_bad_records,
        opened.labels,
        opened._options(1, 0).prompt_tokens,
        opened._options(1, 0, seed=0).packing,
        feed.threads,
    )


def shared(e: Experiment, folder: Path, monkeypatch) -> object:
    """The tokens that two windows of a long text share."""
    return objective_of(e).overlap


def beginning(e: Experiment, folder: Path, monkeypatch) -> object:
    """The checkpoint that parameters are read from."""
    seen = []
    monkeypatch.setattr(start, "open_checkpoint", lambda source: nullcontext(source))
    monkeypatch.setattr(start, "grow", lambda source, model: (source, []))
    monkeypatch.setattr(start, "with_parameters", lambda p, s, source: (seen.append(source), []))
    monkeypatch.setattr(start, "with_base", lambda p, s, source: s)
    monkeypatch.setattr(start, "with_held", lambda p, s: s)
    blank = lambda *_: None
    start.first_state(SimpleNamespace(experiment=e, init=blank, check_bytes=blank))
    return seen


def judged(e: Experiment, folder: Path, monkeypatch) -> object:
    """The evaluations that a run makes beside its held-out loss."""
    fake = SimpleNamespace(experiment=e, objective=objective_of(e), batch_size=1)
    made = appraisal.make_appraisal(fake, SimpleNamespace(tokenizer=None), [], folder)
    return sorted((name, type(one).__name__) for name, one in made.others.items())


# By field, or by the section that it is in; `program` for all others.
def epochs(e: Experiment, folder: Path, monkeypatch) -> object:
    """The steps of a run on 40 windows."""
    corpus = SimpleNamespace(train_windows=lambda *_: SimpleNamespace(sizes=(40,)))
    p = make_program(e, objective_of(e), jax.devices()[:1])
    return with_steps(p, corpus).train.steps


def documents(e: Experiment, folder: Path, monkeypatch) -> object:
    """What a step is given of a batch of rows with two documents each."""
    p = make_program(e, objective_of(e), jax.devices()[:1])
    monkeypatch.setattr(type(p), "train_step", lambda self, state, batch: sorted(batch))
    feed = RepeatedFeed({"segments": np.full((p.batch_size, 8), [1, 1, 1, 2, 2, 2, 0, 0])})
    feed.begin(0, {})
    return take_step(p, None, feed)


def sampled(e: Experiment, folder: Path, monkeypatch) -> object:
    """What a run of rollouts samples at its first step, how often, and what is made of it."""
    record = np.frombuffer(b'{"prompt": "a", "answer": "b"}', np.uint8)
    asks = [{"prompt": np.arange(n, n + 3, dtype=np.int32), "record": record} for n in range(4)]
    asked: list[object] = []

    def write(model, params, tokenizer, prompts, config):
        asked.append((prompts, config))
        return [
            Generation(p, "b" * (i % 3), (4, 5), (-1.0, -1.0), "eos") for i, p in enumerate(prompts)
        ]

    p = make_program(e, objective_of(e), jax.devices()[:1])
    tokenizer = SimpleNamespace(decode=str, chat_template=None)
    part = type("Part", (list,), {"longest": lambda self: (3, "")})(asks)
    feed = sampler.rollout_feed(p, tokenizer, Mixture([part], seed=0))
    engine = feed.sample.engine
    feed.sample = dataclasses.replace(feed.sample, engine=write)
    monkeypatch.setattr(sampler.Sampler, "difference", lambda *_: 5e-5)
    feed.begin(0, {})
    try:
        feed.offer(SimpleNamespace(trainable={}, params={}))
    except command.Stop as stop:
        return str(stop)
    batch = next(feed)[1]
    values = {n: v for n, v in feed.values().items() if n != "rollout_share"}
    arrays = {name: x.tolist() for name, x in batch.items()}
    return asked, values, arrays, sorted(feed.state()), engine


def watched(e: Experiment, folder: Path, monkeypatch) -> object:
    """What a watchdog says after how many seconds without a sign of life, in each part of a run."""
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback", lambda *_: None)
    said = []
    for part in dataclasses.asdict(e.watchdog):
        dog = watchdog.Watchdog(e.watchdog, said.append, itertools.count(step=1.0).__next__)
        dog._ended = SimpleNamespace(wait=lambda _: False)
        with dog.during(part):
            dog._watch()
    return said


def skipped(e: Experiment, folder: Path, monkeypatch) -> object:
    """What ends a run of which six updates in a row were left out."""
    step, values = 9, {"loss": np.float32(1.0), "skipped": 6, "skipped_in_row": 6}
    p = SimpleNamespace(schedule=lambda _: 1.0, batch_size=1)
    run = SimpleNamespace(experiment=e, program=p, feed_state={})
    run.checkpoints = SimpleNamespace(latest=lambda: 5)
    log = SimpleNamespace(step=lambda *_: None, note=lambda _: None)
    try:
        lines.log_step(run, log, step, {n: np.asarray(v) for n, v in values.items()}, {})
    except (command.Stop, Rewind) as end:
        return type(end), str(end)


PROBES = {
    **{f"model.image.{field.name}": pictures for field in dataclasses.fields(ImageConfig)},
    **{f"model.sound.{field.name}": sounds for field in dataclasses.fields(SoundConfig)},
    **dict.fromkeys(("data.sequence_length", "data.batch_size"), program),
    **dict.fromkeys(("data.batch_size_per_device", "train.accumulate", "train.seed"), program),
    **dict.fromkeys((f"objective.policy.{n}" for n in ("advantage", *SAMPLED)), sampled),
    **dict.fromkeys((f"objective.on_policy_distillation.{n}" for n in SAMPLED), sampled),
    **dict.fromkeys(
        (f"objective.{n}.overlap" for n in ("question_answering", "token_classification")), shared
    ),
    **{
        "data": data,
        "train": events,
        "checkpoint": retention,
        "logging": trackers,
        "skip.limit": skipped,
        "skip.then": skipped,
        "watchdog": watched,
    },
    **{
        "execution.documents": documents,
        "init": beginning,
        "evals": judged,
        "train.epochs": epochs,
    },
}
