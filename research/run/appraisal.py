"""Evaluations of a run and texts that its model generates, during training and at its end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.data.chat import end_of_turn, render_chat
from research.data.corpus import Corpus
from research.data.loader import Window
from research.data.packing import Chained
from research.data.tokenizers import Tokenizer
from research.evals.choose import make_evaluations
from research.evals.evaluation import Evaluation, RunData
from research.evals.heldout import HeldOut
from research.evals.results import keep, measure
from research.evals.rewarded import Rewarded
from research.infer.decode import generate
from research.infer.sampling import SamplingConfig
from research.infer.sentences import SentenceSettings
from research.models.model import Model
from research.objectives.objective import Objective
from research.run.program import Program
from research.training.state import TrainState
from research.tree import Tree


@dataclass(frozen=True)
class TrainedModel:
    """The model of a run at one step, as evaluations read it (`research.evals.evaluation.Opened`).

    window        length of the training sequences in tokens
    held          parameters of frozen models by name, such as "reference"
    begins_texts  whether texts start with the token that begins a text
    stop_ids      tokens that end an answer
    sentences     how a text becomes one vector
    labels        names of the classes
    """

    model: Model
    params: Tree
    tokenizer: Tokenizer
    window: int
    held: Mapping[str, Tree] = field(default_factory=dict)
    begins_texts: bool = True
    stop_ids: tuple[int, ...] = ()
    sentences: SentenceSettings = SentenceSettings()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Appraisal:
    """The evaluations of a run: the loss on held-out data, and the entries of `config.evals`, whose
    items are kept in the folder `workdir`."""

    program: Program
    tokenizer: Tokenizer
    heldout: HeldOut | Rewarded
    others: Mapping[str, Evaluation]
    workdir: Path
    labels: tuple[str, ...] = ()

    def __call__(self, state: TrainState, step: int, limit: int) -> dict[str, float]:
        """Measures the model of `state`, after `step` steps, and returns values by name.

        Values on held-out data come from the first `limit` batches (0: all) and have plain names
        such as "loss"; the run log writes them as "eval/loss". Those of the entry NAME of
        `config.evals` are named "eval/NAME/value".
        """
        objective = self.program.objective
        opened = TrainedModel(
            self.program.model,
            state.params,
            self.tokenizer,
            self.program.experiment.data.sequence_length,
            state.held_params,
            objective.begins_texts,
            _answer_ends(objective, self.tokenizer),
            labels=self.labels,
        )
        # Only the number of batches differs between an evaluation in mid-run and the last one, so
        # both share one compiled step.
        heldout = replace(self.heldout, batches=limit)
        values = heldout.values(heldout.run(opened))
        for name, evaluation in self.others.items():
            result = measure(name, evaluation, opened)
            # Processes share the workdir, so one of them writes.
            if jax.process_index() == 0:
                keep(self.workdir, result, {"step": step})
            # The run log leaves a name with a slash as it is.
            values |= {f"eval/{name}/{key}": value for key, value in result.values.items()}
        return values


def make_appraisal(program: Program, corpus: Corpus, heldout: Chained, workdir: Path) -> Appraisal:
    """The evaluations that the config of the run in `workdir` chooses.

    ValueError for settings of `config.evals` that do not fit; call it before the first step, so
    that they do not end the run later.
    """
    data = RunData(program.objective, heldout, program.batch_size, corpus)
    others = make_evaluations(program.experiment.evals, data)
    own: type[HeldOut] | type[Rewarded] = HeldOut
    objective = program.objective
    if objective.writes_texts:  # they have no loss before they are written
        own = Rewarded
    measured: Any = own
    heldout_loss = measured.make(own.config(), data)
    labels = tuple(corpus.labels) if objective.classifies else ()
    return Appraisal(program, corpus.tokenizer, heldout_loss, others, workdir, labels)


def _answer_ends(objective: Objective, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that end what the model writes, beside the tokenizer's end token."""
    chats = objective.answers_chats and tokenizer.chat_template is not None
    end = end_of_turn(tokenizer) if chats else None
    return () if end is None else (end,)


def sample(
    program: Program,
    tokenizer: Tokenizer,
    state: TrainState,
    step: int,
    heldout: Sequence[Window] = (),
) -> tuple[str, str] | None:
    """Generates from `train.sample_prompt` and returns (prompt, continuation).

    For chat objectives these are the rendered user message and the answer. An encoder-decoder
    needs a text to read: without a prompt it gets the first one of the `heldout` windows. None for
    encoders, which generate nothing, without such a text, if `train.sample_tokens` is 0, and in
    runs of several processes. ValueError for a prompt that the model cannot take.
    """
    e, objective = program.experiment, program.objective
    if e.model.kind == "encoder" or not e.train.sample_tokens or jax.process_count() > 1:
        return None
    prompt = e.train.sample_prompt
    # Answers of a tokenizer without a template follow plain prompts.
    chats = objective.answers_chats and tokenizer.chat_template is not None
    ids: list[int] = []
    begins = objective.begins_texts and e.model.kind == "decoder"
    if not prompt and not begins and not chats:
        ids = _heldout_text(objective, heldout)
        if not ids:
            return None
    if chats:  # the template writes its own beginning and end of a text
        prompt = render_chat(tokenizer, [{"role": "user", "content": prompt}])
    config = SamplingConfig(
        max_tokens=e.train.sample_tokens,
        temperature=0.8,
        top_p=0.95,
        # Each step draws anew, and a resumed run writes the sample that it would have written.
        seed=step,
        bos=objective.begins_texts and not chats,
        stop_ids=_answer_ends(objective, tokenizer),
    )
    [generation] = generate(program.model, state.params, tokenizer, [ids or prompt], config)
    return tokenizer.decode(ids) if ids else prompt, generation.text


def _heldout_text(objective: Objective, heldout: Sequence[Window]) -> list[int]:
    """The ids that an encoder reads of the first held-out text, [] without one."""
    if not len(heldout):
        return []
    example = objective.example(heldout[0], np.random.default_rng(0))
    if "encoder_inputs" not in example:
        return []
    return example["encoder_inputs"][example["encoder_segments"] == 1].tolist()
