"""How a run starts: its data, and its first state, from a checkpoint where `config.init` names
one."""

import dataclasses
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax

from research import tree
from research.data.corpus import Corpus, open_corpus
from research.experiment.config import Experiment
from research.interop.load import open_checkpoint
from research.interop.storage.checkpoint import Checkpoint
from research.models import spec
from research.models.config import Body, ModelConfig
from research.run.program import Program
from research.training.state import TrainState
from research.tuning.lora_init import start
from research.tuning.method import (
    FRESH,
    QuantizeConfig,
    dense_specs,
    new_frozen,
    quantize_rules,
)
from research.weights.rules import is_leaf


def open_data(experiment: Experiment, tokenizer_folder: Path | None = None) -> Corpus:
    """The corpus of an experiment. The tokenizer is the one in the folder, where there is such a
    folder, else the one that config.data.tokenizer names, and where that is empty the checkpoint's.
    ValueError for what does not fit together."""
    saved, given = tokenizer_folder is not None and tokenizer_folder.is_dir(), None
    if not experiment.data.tokenizer and not experiment.init and not saved:
        raise ValueError(
            "data.tokenizer='' is the tokenizer of config.init, which is not set; set one of them"
        )
    if not saved and not experiment.data.tokenizer:
        with open_checkpoint(experiment.init, verify=False) as checkpoint:
            given = checkpoint.tokenizer
        if given is None:
            raise ValueError(f"{experiment.init} has no tokenizer; set config.data.tokenizer")
    corpus = open_corpus(
        experiment.data, tokenizer_folder, wanted=experiment.objective.reads, given=given
    )
    words, classes = corpus.tokenizer.vocab_size, len(corpus.labels)
    if words > experiment.model.vocab_size:
        raise ValueError(
            f"the tokenizer has {words} tokens, the model {experiment.model.vocab_size}; "
            f"set config.model.vocab_size to at least {words}"
        )
    if classes > experiment.model.labels:
        shown = ", ".join(corpus.labels[:5]) + (", ..." if classes > 5 else "")
        raise ValueError(
            f"the data have {classes} labels ({shown}), the model {experiment.model.labels}; "
            f"set config.model.labels={classes}"
        )
    return corpus


def first_state(program: Program) -> tuple[TrainState, list[str]]:
    """The state before the first step, and lines that say what it is made of.

    With `config.init` the parameters are the checkpoint's, each read straight onto its sharding and
    into its format, but for a pooler or classifier that it lacks. ValueError where it lacks
    another, or has one in another shape.
    """
    source, state, lines = program.experiment.init, program.init(), []
    with open_checkpoint(source) if source else nullcontext() as checkpoint:
        if checkpoint is not None:
            state, lines = with_parameters(program, state, checkpoint)
        state = with_base(program, state, checkpoint)
    program.check_bytes(state)
    return state, lines


def with_parameters(
    program: Program, state: TrainState, checkpoint: Checkpoint
) -> tuple[TrainState, list[str]]:
    """A fresh state with the checkpoint's values for what is trained of the model itself, and lines
    that say what is not."""
    source, model = program.experiment.init, program.experiment.model
    fresh = [
        name
        for name, field in FRESH.items()
        if name in state.trainable and getattr(checkpoint.config, field) != getattr(model, field)
    ]
    trainable, wanted = (
        tree.paths(state.trainable, is_leaf),
        tree.paths(program.trained.trainable, is_leaf),
    )
    known = [path for path in tree.paths(program.model.specs()) if path.split("/")[0] not in fresh]
    own = {path: wanted[path] for path in known if path in wanted and not is_leaf(wanted[path])}
    read = tree.paths(checkpoint.restore(tree.unflatten(own)))
    lines = [f"parameters of {source}"] + [
        f"the {name} is new: {source} has none for this model" for name in fresh
    ]
    lines += [f"not as in {source}: model.{change}" for change in changes(checkpoint.config, model)]
    return replace(state, trainable=tree.unflatten(trainable | read)), lines


def with_base(program: Program, state: TrainState, checkpoint: Checkpoint | None) -> TrainState:
    """A fresh state with its frozen parameters, of the checkpoint or from the seed, and adapters
    that start from them."""
    e, specs = program.experiment, program.model.specs()
    if not program.specs[1] or e.tune.method != "lora":
        return replace(state, frozen=read_frozen(program, checkpoint))
    if e.lora.start == "default":
        frozen, plain, rules = read_frozen(program, checkpoint), specs, None
    else:  # which takes the weights apart before they are quantized
        plain = dense_specs(specs, program.specs[1])
        frozen = read_frozen(program, checkpoint, plain)
        rules = quantize_rules(plain, e.quantize)
    trainable, frozen = start(e.lora.start, state.trainable, frozen, plain, rules, e.quantize.group)
    return replace(state, trainable=trainable, frozen=frozen)


def read_frozen(
    program: Program, checkpoint: Checkpoint | None, plain: tree.Tree | None = None
) -> tree.Tree:
    """The frozen parameters in their formats, or not quantized where `plain` has their specs."""
    if not program.specs[1]:
        return {}
    e = program.experiment
    specs, config = (program.specs[1], e.quantize) if plain is None else (plain, QuantizeConfig())
    abstract = spec.abstract(specs, e.precision.compute_dtype, program.mesh, program.rules)
    if checkpoint is not None:
        return checkpoint.restore(abstract)
    make = partial(
        new_frozen,
        program.model.specs(),
        specs,
        config,
        e.train.seed,
        e.precision.compute_dtype,
        program.mesh,
        program.rules,
    )
    return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))()


def resumed_state(program: Program, stored: TrainState) -> TrainState:
    """A state from a checkpoint with the frozen parameters that are not in there: read as at the
    start."""
    if program.keeps_frozen or not program.specs[1]:
        return stored
    source = program.experiment.init
    with open_checkpoint(source) if source else nullcontext() as checkpoint:
        return replace(stored, frozen=read_frozen(program, checkpoint))


def changes(before: ModelConfig, after: ModelConfig) -> list[str]:
    """ "window: 4096 -> 0" for each field that differs and changes what the same parameters
    compute."""
    names = {field.name for field in dataclasses.fields(Body)}
    if before.position != "learned":
        names.remove("max_length")  # the length that the model was made for, and no table's
    old, new = dataclasses.asdict(before), dataclasses.asdict(after)
    return [
        f"{name}: {old[name]} -> {new[name]}"
        for name in old
        if name in names and old[name] != new[name]
    ]
