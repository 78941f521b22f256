"""The protocol of evaluations: what training and `research.evaluate` ask of every measurement."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from research.data.corpus import Corpus
from research.data.loader import Window
from research.data.tokenizers import Tokenizer
from research.infer.sentences import SentenceSettings
from research.models.model import Model
from research.objectives.objective import Objective
from research.tree import Tree

# (sum, count) by name: they add up over batches, devices and parts of a text, as means do not.
Totals = dict[str, tuple[float, float]]


def add_up(parts: Iterable[Totals]) -> Totals:
    """The totals of all parts together."""
    # Python floats are float64: sums over many items keep their digits.
    totals: Totals = {}
    for part in parts:
        for name, (total, count) in part.items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = (before[0] + float(total), before[1] + float(count))
    return totals


@dataclass(frozen=True)
class Item:
    """What was measured on one thing: a question, a document, a prompt, a batch.

    id      its name, one of a kind in the evaluation and the same for every model, so that two
            models are compared item by item
    totals  (sum, count) by name. Names with a slash, such as "bleu/matches_1", are parts of a
            number that has no value for a single item
    texts   what a reader wants to see of it, such as "prompt", "written" and "answer"
    slices  the groups that it belongs to, such as {"subject": "history"}
    """

    id: str
    totals: Totals
    texts: Mapping[str, str] = field(default_factory=dict)
    slices: Mapping[str, str] = field(default_factory=dict)


class Opened(Protocol):
    """A model to measure. On a mesh, enter `jax.set_mesh` around the measurement."""

    @property
    def model(self) -> Model:
        """The model, without its parameters."""

    @property
    def params(self) -> Tree:
        """Its parameters, with adapters attached."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Its tokenizer; None for a checkpoint without one."""

    @property
    def begins_texts(self) -> bool:
        """Whether texts start with the token that begins a text."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens at which generation ends, beside the tokenizer's end token."""

    @property
    def sentences(self) -> SentenceSettings:
        """How a text becomes one vector."""

    @property
    def labels(self) -> Sequence[str]:
        """The names of a classifier's classes, () where they are not known."""

    @property
    def held(self) -> Mapping[str, Tree]:
        """Parameters of the frozen models that a run's objective holds, by name."""

    @property
    def window(self) -> int:
        """Tokens that the model saw at once in training."""


@dataclass(frozen=True)
class RunData:
    """What the run that is evaluated has beside its model: its held-out windows, its objective and
    the rows of its batches over all devices. `corpus` knows the size of the held-out text. A
    checkpoint has none of that, but for the `kind` of its model."""

    objective: Objective | None = None
    windows: Sequence[Window] = ()
    batch_size: int = 1
    corpus: Corpus | None = None
    kind: str = ""

    @property
    def model_kind(self) -> str:
        """ "decoder", "encoder" or "encoder_decoder"."""
        return self.kind if self.objective is None else self.objective.model_kind

    def run_objective(self) -> Objective:
        """The objective. ValueError for a checkpoint, which has no held-out data."""
        if self.objective is None:
            raise ValueError(
                "a checkpoint has no held-out data; give --workdir of a run, or score a text with "
                "kind 'perplexity'"
            )
        return self.objective


class Evaluation(Protocol):
    """Measures a model on data of its own, in sums and counts.

    An implementer is a frozen dataclass in a file of its own and one row of
    `research.evals.choose.EVALUATIONS`. The laws, which tests/evals/test_laws.py runs over all:

    - An item has sums and counts, never means: those of some data are the sums over its items.
    - Every count is positive, and two calls with the same model return the same bits.
    - Nothing that is given is changed, and every process returns the same numbers.
    - Ids of items differ, and another model has the same ones.
    - `values` is a function of the totals, so totals can be added before they become means.

    main             the value that items are ranked by in reports, "" for none
    lower_is_better  whether small ones of these are good
    apart            values that are one share less another, of other items each: the names of both
    """

    config: ClassVar[type]  # a dataclass: the fields of `config.evals.NAME`, which chooses it
    main: ClassVar[str] = ""
    lower_is_better: ClassVar[bool] = False
    apart: ClassVar[Mapping[str, tuple[str, str]]] = {}

    @classmethod
    @abstractmethod
    def make(cls, config: Any, data: RunData) -> "Evaluation":
        """The evaluation of a `config` of its own class. ValueError for settings that do not fit,
        before anything is computed."""

    @abstractmethod
    def items(self, opened: Opened) -> Iterator[Item]:
        """What is measured on each thing, in an order that does not depend on the model. ValueError
        for a model that cannot be measured."""

    def run(self, opened: Opened) -> Totals:
        """(sum, count) by name, over all items."""
        return add_up(item.totals for item in self.items(opened))

    def notes(self) -> Sequence[str]:
        """Sentences that a reader needs before the numbers, such as a published objection to the
        data, or how well a scorer agrees with people; none by default."""
        return ()

    def values(self, totals: Totals) -> dict[str, float]:
        """The reported numbers by name: here the mean of each total without a slash in its name."""
        return {
            name: total / max(count, 1.0)
            for name, (total, count) in totals.items()
            if "/" not in name
        }
