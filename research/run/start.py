"""The start of a run: its data, and its first state with the parameters of `config.init`."""

import dataclasses
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from research import tree
from research.data.corpus import Corpus, has_tokenizer, open_corpus
from research.devices.backend import platform
from research.experiment.config import Experiment
from research.interop.load import open_checkpoint
from research.interop.restored import read_base
from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.grow import grow
from research.models.config import Body, ModelConfig
from research.objectives.choose import objective_class
from research.objectives.soft_tokens import soft_tokens
from research.run.program import Program
from research.run.teacher import read_teacher
from research.training.state import TrainState, from_stored
from research.tuning.held import held_trees
from research.tuning.lora_init import start
from research.tuning.method import (
    QuantizeConfig,
    dense_specs,
    fresh_parts,
    quantize_rules,
)
from research.weights.rules import TEACHER, is_leaf


def open_data(experiment: Experiment, tokenizer_folder: Path | None = None) -> Corpus:
    """The corpus of an experiment, with its tokenizer.

    The tokenizer is the first of these that there is: the one saved in `tokenizer_folder` by an
    earlier start of the run, `config.data.tokenizer`, the one of the checkpoint `config.init`, and
    that of a distillation's teacher.
    ValueError without a tokenizer, and for more tokens or labels than the model has.
    """
    saved, given = has_tokenizer(tokenizer_folder), None
    # Only a distillation has a teacher.
    source = experiment.init or getattr(experiment.objective, TEACHER, "")
    if not experiment.data.tokenizer and not source and not saved:
        raise ValueError(
            "data.tokenizer='' is the tokenizer of config.init, which is not set; set one of them"
        )
    if not saved and not experiment.data.tokenizer:
        # Only the tokenizer is read, so the checksums of the weights can wait.
        with open_checkpoint(source, verify=False) as checkpoint:
            given = checkpoint.tokenizer
        if given is None:
            raise ValueError(f"{source} has no tokenizer; set config.data.tokenizer")
    corpus = open_corpus(
        experiment.data,
        tokenizer_folder,
        wanted=objective_class(experiment.objective.name).reads,
        given=given,
        soft=soft_tokens(experiment.model),
    )
    words, classes = corpus.tokenizer.vocab_size, len(corpus.labels)
    if words > experiment.model.vocab_size:
        raise ValueError(
            f"the tokenizer has {words} tokens, the model {experiment.model.vocab_size}; "
            f"set config.model.vocab_size to at least {words}, "
            + (
                f"for which the tables of {experiment.init} grow"
                if experiment.init
                else "or config.init to a checkpoint of that tokenizer"
            )
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

    With `config.init` the parameters are read from that checkpoint, each straight onto its sharding
    and into its format. Tables of fewer tokens or learned positions than the model's get new rows;
    a pooler or classifier that the checkpoint lacks keeps its random start. ValueError for any
    other parameter that is missing or has another shape.
    """
    source, state, lines = program.experiment.init, program.init(), []
    with open_checkpoint(source) if source else nullcontext() as checkpoint:
        if checkpoint is not None:
            checkpoint, grown = grow(checkpoint, program.experiment.model)
            state, lines = with_parameters(program, state, checkpoint)
            lines += grown
        # In this order: adapters may start from the base (PiSSA), and the trees that the objective
        # holds are copies of what the run starts from.
        state = with_base(program, state, checkpoint)
        state = with_held(program, state)
    program.check_bytes(state)
    return state, lines


def with_parameters(
    program: Program, state: TrainState, checkpoint: Checkpoint
) -> tuple[TrainState, list[str]]:
    """(`state` with the checkpoint's values for the model's own trained parameters, lines for the
    user). Adapters keep their fresh values."""
    source, model = program.experiment.init, program.experiment.model
    # A head of another size, or none, in the checkpoint: fine-tuning begins it anew.
    # Labels of something else, such as of whole texts, are another head of the same shape.
    another = {"classifier"} if checkpoint.config.labels_over != model.labels_over else set()
    fresh = [
        name
        for name in fresh_parts(model)
        if name in state.trainable
        and (name in another or not _has(checkpoint, name, program.model.specs()))
    ]
    trainable, wanted = (
        tree.paths(state.trainable, is_leaf),
        tree.paths(program.baseless_state.trainable, is_leaf),
    )
    known = [path for path in tree.paths(program.model.specs()) if path.split("/")[0] not in fresh]
    # Without the paths at which an adapter lies (`is_leaf`): those are new in this run.
    plain = {path: wanted[path] for path in known if path in wanted and not is_leaf(wanted[path])}
    restored = tree.paths(checkpoint.restore(tree.unflatten(plain)))
    if platform() == "cpu":
        # What was read lies in numpy's memory, which a step cannot take over for its results.
        restored = {path: jnp.copy(restored.pop(path)) for path in list(restored)}
    lines = [f"parameters of {source}"] + [
        f"the {name} is new: {source} has none for this model" for name in fresh
    ]
    lines += [f"not as in {source}: model.{change}" for change in changes(checkpoint.config, model)]
    return replace(state, trainable=tree.unflatten(trainable | restored)), lines


def _has(checkpoint: Checkpoint, name: str, specs: tree.Tree) -> bool:
    """True if the checkpoint has all parameters below `name`, in the shapes of `specs`."""
    wanted = {f"{name}/{path}": spec.shape for path, spec in tree.paths(specs[name]).items()}
    found = checkpoint.parameters
    return all(path in found and found[path].shape == wanted[path] for path in wanted)


def with_base(program: Program, state: TrainState, checkpoint: Checkpoint | None) -> TrainState:
    """A fresh state with its frozen base, read from the checkpoint or drawn from the seed, and with
    adapters that start from that base if `lora.start` says so."""
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
    """A state that has its base, with the further frozen trees of the objective, such as DPO's
    reference model."""
    own = [name for name in program.objective.holds if name != TEACHER]
    others = held_trees(own, state.trainable)
    # Copied, because the train step gives away the buffers of a state, and each only once.
    held = {**state.held, **jax.tree.map(jnp.copy, others)}
    return replace(state, held=held | _teacher(program))


def resumed_state(program: Program, stored: dict[str, tree.Tree]) -> TrainState:
    """The state of a checkpoint that `Program.to_stored` has made. A base that is not in it is read
    again from `config.init` or drawn again from the seed, and a teacher from its checkpoint."""
    state, base_specs = from_stored(stored), program.held_specs["base"]
    state = replace(state, held=state.held | _teacher(program))
    # A base that LoRA's start has changed is in the checkpoint; any other is read from its source.
    if program.experiment.changes_base or not base_specs:
        return state
    source = program.experiment.init
    with open_checkpoint(source) if source else nullcontext() as checkpoint:
        base = _read_base(program, checkpoint, base_specs)
        return replace(state, held={**state.held, "base": base})


def _teacher(program: Program) -> dict[str, tree.Tree]:
    """The teacher of a distillation from another checkpoint, by its name; {} without one."""
    if program.teacher is None:
        return {}
    read = read_teacher(program.experiment, program.abstract_held[TEACHER])
    # What was read on a CPU lies in numpy's memory, which a step cannot take over.
    return {TEACHER: jax.tree.map(jnp.copy, read)}


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
    """Lines such as "window: 4096 -> 0" for the fields that differ and change what the same
    parameters compute, such as a norm's epsilon."""
    names = {field.name for field in dataclasses.fields(Body)}
    if before.position != "learned":
        names.remove("max_length")  # then it is no table's size and changes no computation
    old, new = dataclasses.asdict(before), dataclasses.asdict(after)
    return [
        f"{name}: {old[name]} -> {new[name]}"
        for name in old
        if name in names and old[name] != new[name]
    ]
