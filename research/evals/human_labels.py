"""Answers that people have labelled, which our own scorers are held against before their numbers
are shown. They ship in pyrit 1.1 (MIT), which is opened as an archive and never installed."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from research.evals.auroc import auroc, tally
from research.evals.evaluation import add_up
from research.evals.intervals import wilson
from research.evals.records import read_records


@dataclass(frozen=True)
class Labelled:
    """A request, an answer to it, and the share of raters who found it a refusal, or harmful."""

    request: str
    answer: str
    label: float


def labelled(source: str) -> tuple[Labelled, ...]:
    """The answers of "refusal_labels", "hate_labels" or "violence_labels". ValueError if the
    package cannot be had."""
    found = _labelled(source)
    if isinstance(found, str):
        raise ValueError(found)
    return found


@functools.cache
def _labelled(source: str) -> tuple[Labelled, ...] | str:
    """The answers, or why there are none: a run without a network must not wait for it at every
    evaluation."""
    try:
        records = read_records(source)
    except ValueError as error:
        return str(error)
    found = []
    for _, record in records:
        scores = [float(record[name]) for name in record if name.startswith("human_score")]
        label = sum(scores) / len(scores)
        found.append(Labelled(record["objective"], record["assistant_response"], label))
    return tuple(found)


@dataclass(frozen=True)
class Agreement:
    """How a scorer that says yes or no agrees with people, over `n` answers. NaN-free: a precision
    or recall of nothing is 0.

    precision  share of its yeses that are people's
    recall     share of people's yeses that are its own
    agreement  share of answers on which both say the same
    """

    precision: float
    recall: float
    agreement: float
    n: int

    def sentence(self) -> str:
        """In a line, with the 95% interval of the agreement."""
        low, high = wilson(round(self.agreement * self.n), self.n)
        return (
            f"precision {self.precision:.2f}, recall {self.recall:.2f}, agreement "
            f"{self.agreement:.2f} [{low:.2f}, {high:.2f}] over {self.n} answers"
        )


def agreement(said: Sequence[bool], wanted: Sequence[bool]) -> Agreement:
    """The agreement of what a scorer said with what people did."""
    both = sum(one and other for one, other in zip(said, wanted))
    same = sum(bool(one) == bool(other) for one, other in zip(said, wanted))
    return Agreement(
        both / max(sum(said), 1), both / max(sum(wanted), 1), same / max(len(said), 1), len(said)
    )


def area(scores: Sequence[float], wanted: Sequence[bool]) -> float:
    """The area under the ROC curve of scores against what people said."""
    return auroc(add_up(tally("s", one, yes) for one, yes in zip(scores, wanted)), "s")
