"""The objective of a step whose data are not here."""

from types import SimpleNamespace

from research.experiment.config import Experiment
from research.objectives.choose import Objective, make_objective


def objective_without_data(experiment: Experiment) -> Objective:
    """The objective as a step knows it, without the tokenizer that makes its data: the ids of
    special tokens are constants of the data."""
    vocab_size = experiment.model.vocab_size
    tokenizer = SimpleNamespace(
        bos_id=0,
        eos_id=1,
        pad_id=2,
        mask_id=3,
        sentinel_ids=tuple(range(4, 104)),
        vocab_size=vocab_size,
        word_starts=[True] * vocab_size,
    )
    return make_objective(experiment.objective, tokenizer, experiment.model)
