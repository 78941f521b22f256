"""A classifier of texts from a checkpoint, as a function of texts."""

from collections.abc import Callable, Sequence

from research.experiment.fields import nearest
from research.infer.classes import classify
from research.interop.load import load
from research.interop.storage.label_names import read_label_names


def open_classifier(source: str, label: str) -> Callable[[Sequence[str]], list[float]]:
    """The probability that each text is of the class `label`, by the classifier at `source`.
    ValueError for a checkpoint that classifies no texts or has no class of that name."""
    loaded = load(source)
    config = loaded.model.config
    if not config.labels or config.labels_over != "text" or loaded.tokenizer is None:
        raise ValueError(f"classifier={source} is no classifier of texts with a tokenizer")
    names = read_label_names(source, config.labels)
    if label not in names:
        raise ValueError(
            f"label={label!r} is no class of {source}; {nearest(label, dict.fromkeys(names))}"
        )
    place, tokenizer = names.index(label), loaded.tokenizer

    def _probabilities(texts: Sequence[str]) -> list[float]:
        probs_NC = classify(loaded.model, loaded.params, tokenizer, list(texts), config.max_length)
        return [float(probs_C[place]) for probs_C in probs_NC]

    return _probabilities
