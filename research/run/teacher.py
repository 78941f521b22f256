"""The teacher of a distillation: another checkpoint, held frozen beside the student and never saved
with it."""

from dataclasses import replace
from typing import Any

from research import tree
from research.data.tokenizers import Tokenizer
from research.experiment.config import Experiment
from research.interop.load import open_checkpoint
from research.objectives.choose import Objective
from research.weights.rules import TEACHER


def with_teacher(
    experiment: Experiment, objective: Objective, tokenizer: Tokenizer | None = None
) -> Objective:
    """The objective with the shape of the teacher that the experiment names; any other objective as
    it is. Only the checkpoint's header and, to compare it with `tokenizer`, its tokenizer are read.

    ValueError for a teacher that is no decoder, predicts over another number of tokens, or has
    another tokenizer: its distribution would be one over other words.
    """
    if TEACHER not in objective.holds:
        return objective
    settings: Any = experiment.objective
    path, size = settings.teacher, experiment.model.vocab_size
    with open_checkpoint(path, verify=False) as checkpoint:
        c = checkpoint.config
        if c.kind != "decoder":
            raise ValueError(f"objective.teacher={path} is an {c.kind}; give a decoder")
        if c.vocab_size != size:
            raise ValueError(
                f"objective.teacher={path} predicts over {c.vocab_size} tokens, the student over "
                f"{size}; set config.model.vocab_size={c.vocab_size}, or give a teacher of the "
                "student's vocabulary"
            )
        other = None if tokenizer is None else checkpoint.tokenizer
    if tokenizer is not None and other is not None and other.fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"objective.teacher={path} has another tokenizer than the student, so its "
            "probabilities are of other words; set config.data.tokenizer to the teacher's, or give "
            "a teacher with the student's"
        )
    # The protocol does not say that its classes are dataclasses.
    distillation: Any = objective
    return replace(distillation, teacher=c)


def read_teacher(experiment: Experiment, abstract: tree.Tree) -> tree.Tree:
    """The teacher's parameters, each read onto its sharding of `abstract`."""
    settings: Any = experiment.objective
    with open_checkpoint(settings.teacher) as checkpoint:
        return checkpoint.restore(abstract)
