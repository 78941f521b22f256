"""The start of a run: its data, and its first state, with the parameters of `config.init` if
set."""

import dataclasses
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from research import tree
from research.data.corpus import Corpus, open_corpus
from research.experiment.config import Experiment
from research.interop.load import open_checkpoint
from research.interop.restored import read_base
from research.interop.storage.checkpoint import Checkpoint
from research.models.config import Body, ModelConfig
from research.objectives.choose import objective_class
from research.run.program import Program
from research.training.state import TrainState, from_stored
from research.tuning.held import held_trees
from research.tuning.lora_init import start
from research.tuning.method import (
    FRESH,
    QuantizeConfig,
    dense_specs,
    quantize_rules,
)
from research.weights.rules import is_leaf


def open_data(experiment: Experiment, tokenizer_folder: Path | None = None) -> Corpus:
    """The corpus of an experiment, with the tokenizer saved in `tokenizer_folder` if that exists,
    else that of `config.data.tokenizer`, else, if that is empty, that of the checkpoint
    `config.init`.

    ValueError for no tokenizer, and for more tokens or labels than the model has.
    """
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
        experiment.data,
        tokenizer_folder,
        wanted=objective_class(experiment.objective.name).reads,
        given=given,
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
    """(state before the first step, lines for the user on where its parameters come from).

    With `config.init` parameters are read from that checkpoint, each onto its sharding and into its
    format; only a pooler or classifier that it lacks is new. ValueError for any other parameter
    that is missing or has another shape.
    """
    source, state, lines = program.experiment.init, program.init(), []
    with open_checkpoint(source) if source else nullcontext() as checkpoint:
        if checkpoint is not None:
            state, lines = with_parameters(program, state, checkpoint)
        state = with_base(program, state, checkpoint)
        state = with_held(program, state)
    program.check_bytes(state)
    return state, lines


def with_parameters(
    program: Program, state: TrainState, checkpoint: Checkpoint
) -> tuple[TrainState, list[str]]:
    """(`state` with the checkpoint's values for the trained parameters of the model itself, not of
    adapters; lines for the user)."""
    source, model = program.experiment.init, program.experiment.model
    fresh = [
        name
        for name, field in FRESH.items()
        if name in state.trainable and getattr(checkpoint.config, field) != getattr(model, field)
    ]
    trainable, wanted = (
        tree.paths(state.trainable, is_leaf),
        tree.paths(program.baseless_state.trainable, is_leaf),
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
    """A fresh state with its base, of the checkpoint or from the seed, and adapters that start from
    it."""
    e, plain = program.experiment, program.model.specs()
    base_specs = program.held_specs["base"]
    if not e.changes_base:
        base = _read_base(program, checkpoint, base_specs)
        if not base_specs or e.tune.method != "lora":
            return replace(state, held={"base": base})
        rules = None
    else:  # adapters start from the dense weights, which are quantized after that
        plain = dense_specs(plain, base_specs)
        base = _read_base(program, checkpoint, plain, QuantizeConfig())
        rules = quantize_rules(plain, e.quantize)
    trainable, base = start(e.lora.start, state.trainable, base, plain, rules, e.quantize.group)
    return replace(state, trainable=trainable, held={"base": base})


def with_held(program: Program, state: TrainState) -> TrainState:
    """A fresh state that has its base, with the further frozen trees that the objective holds."""
    others = held_trees(program.objective.holds, state.trainable)
    # Copied, because the train step gives away the buffers of a state, and each only once.
    return replace(state, held={**state.held, **jax.tree.map(jnp.copy, others)})


def resumed_state(program: Program, stored: dict[str, tree.Tree]) -> TrainState:
    """The state of a checkpoint, with its base read again from `config.init` where it is not in the
    checkpoint."""
    state, base_specs = from_stored(stored), program.held_specs["base"]
    # A base that LoRA's start has changed is in the checkpoint; any other is read from its source.
    if program.experiment.changes_base or not base_specs:
        return state
    source = program.experiment.init
    with open_checkpoint(source) if source else nullcontext() as checkpoint:
        base = _read_base(program, checkpoint, base_specs)
        return replace(state, held={**state.held, "base": base})


def _read_base(
    program: Program,
    checkpoint: Checkpoint | None,
    specs: tree.Tree,
    quantize: QuantizeConfig | None = None,
) -> tree.Tree:
    """`research.interop.restored.read_base` onto the program's mesh; {} for no specs."""
    if not specs:
        return {}
    return read_base(program.experiment, specs, checkpoint, program.mesh, program.rules, quantize)


def changes(before: ModelConfig, after: ModelConfig) -> list[str]:
    """ "window: 4096 -> 0" for each field that differs and changes what the same parameters
    compute."""
    names = {field.name for field in dataclasses.fields(Body)}
    if before.position != "learned":
        names.remove("max_length")  # then it is no table's size and changes no computation
    old, new = dataclasses.asdict(before), dataclasses.asdict(after)
    return [
        f"{name}: {old[name]} -> {new[name]}"
        for name in old
        if name in names and old[name] != new[name]
    ]
