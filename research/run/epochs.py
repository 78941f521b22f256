"""Epochs: how often a run reads its data, from steps and back."""

import dataclasses
import math

from research.data.corpus import Corpus
from research.data.mixture import Mixture
from research.experiment.config import Experiment
from research.run.program import Program
from research.training.progress import short_number

# Readings of the same data after which a line says so: fine-tuning takes 1 to 10.
MANY = 100


def training_windows(program: Program, corpus: Corpus, progress=None) -> Mixture:
    """The windows of tokens that a run trains on; documents are tokenised at the first call."""
    data, objective = program.experiment.data, program.objective
    length = objective.window_length(data.sequence_length)
    seed = program.experiment.train.seed
    return corpus.train_windows(length, objective.overlap, seed, progress)


def steps_of(epochs: float, windows: int, batch_size: float) -> int:
    """The least number of steps that read `windows` windows `epochs` times."""
    # Rounded first, for 0.1 * 30 is 3.0000000000000004 and must not make a step more.
    return max(1, math.ceil(round(epochs * windows / batch_size, 9)))


def with_steps(program: Program, corpus: Corpus) -> Experiment:
    """The experiment with `train.steps` set to what `train.epochs` asks for."""
    e = program.experiment
    windows = sum(training_windows(program, corpus).sizes)
    windows_a_step = program.batch_size / e.objective.rows_of_window
    steps = steps_of(e.train.epochs, windows, windows_a_step)
    return dataclasses.replace(e, train=dataclasses.replace(e.train, steps=steps))


def reading(program: Program, documents: int, windows: int) -> str:
    """A line on how often a run reads its data: "37 conversations make 2 windows of 1,024 tokens;
    4.1M tokens in 500 steps of 8 are 2,000 epochs"."""
    e, batch = program.experiment, program.batch_size
    epochs = e.train.steps * batch / e.objective.rows_of_window / windows
    tokens = e.train.steps * batch * e.data.sequence_length
    objective = program.objective
    # Conversations, preferences and the like by their name.
    what = objective.reads if objective.answers_chats or objective.writes_texts else "documents"
    line = (
        f"{documents:,} {what} make {windows:,} windows of {e.data.sequence_length:,} tokens; "
        f"{short_number(tokens)} tokens in {e.train.steps:,} steps of {batch:,} are "
        f"{f'{epochs:,.0f}' if epochs >= 10 else f'{epochs:.3g}'} epochs"
    )
    if epochs < MANY:
        return line
    return f"{line}, which learns them by heart; set config.train.epochs to 1 to 10, or add data"
