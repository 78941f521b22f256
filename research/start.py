"""How a run starts: its data, and its first state, from a checkpoint where `config.init` names one."""

import dataclasses
from dataclasses import replace
from pathlib import Path

from research.data.corpus import Corpus, open_corpus
from research.experiment import Experiment
from research.interop.load import open_checkpoint
from research.models.config import ModelConfig
from research.program import Program
from research.training.state import TrainState

# Layers that a checkpoint may lack, by the field that says so. They start as in an untrained model.
FRESH = {"classifier": "labels", "pooler": "pooler"}


def open_data(experiment: Experiment, tokenizer_folder: Path | None = None) -> Corpus:
    """The corpus of an experiment. The tokenizer is the one in the folder, where there is such a folder, else the one that
    config.data.tokenizer names, and where that is empty the checkpoint's. ValueError for what does not fit together."""
    saved, given = tokenizer_folder is not None and tokenizer_folder.is_dir(), None
    if not saved and not experiment.data.tokenizer:
        with open_checkpoint(experiment.init, verify=False) as checkpoint:
            given = checkpoint.tokenizer
        if given is None:
            raise ValueError(f"{experiment.init} has no tokenizer; set config.data.tokenizer")
    corpus = open_corpus(experiment.data, tokenizer_folder, wanted=experiment.objective.reads, given=given)
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

    With `config.init` the parameters are the checkpoint's, each read straight onto its sharding, but for a pooler or
    classifier that it lacks. ValueError where it lacks another, or has one in another shape.
    """
    state, source, model = program.init(), program.experiment.init, program.experiment.model
    if not source:
        return state, []
    with open_checkpoint(source) as checkpoint:
        fresh = [
            name
            for name, field in FRESH.items()
            if name in state.trainable and getattr(checkpoint.config, field) != getattr(model, field)
        ]
        abstract = {name: part for name, part in program.state.trainable.items() if name not in fresh}
        params = checkpoint.restore(abstract) | {name: state.trainable[name] for name in fresh}
        lines = [f"parameters of {source}"] + [f"the {name} is new: {source} has none for this model" for name in fresh]
        lines += [f"not as in {source}: model.{change}" for change in changes(checkpoint.config, model)]
    return replace(state, trainable=params), lines


def changes(before: ModelConfig, after: ModelConfig) -> list[str]:
    """"window: 4096 -> 0" for each field that differs and changes what the same parameters compute."""
    harmless = {"dropout", "init", "init_std", "router_loss", "labels", "pooler", "mlm_head", "head_bias"}
    if before.position != "learned":
        harmless.add("max_length")
    old, new = dataclasses.asdict(before), dataclasses.asdict(after)
    return [f"{name}: {old[name]} -> {new[name]}" for name in old if old[name] != new[name] and name not in harmless]
