"""The protocol of evaluations: what training and `research.evaluate` ask of every measurement."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from research.data.corpus import Corpus
from research.data.loader import Window
from research.data.tokenizers import Tokenizer
from research.models.model import Model
from research.objectives.objective import Objective
from research.tree import Tree

# (sum, count) by name: they add up over batches, devices and parts of a text, as means do not.
Totals = dict[str, tuple[float, float]]


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
    def held(self) -> Mapping[str, Tree]:
        """Parameters of the frozen models that a run's objective holds, by name."""

    @property
    def window(self) -> int:
        """Tokens that the model saw at once in training."""


@dataclass(frozen=True)
class RunData:
    """What the run that is evaluated has beside its model: its held-out windows, its objective and
    the rows of its batches over all devices. `corpus` knows the size of the held-out text."""

    objective: Objective
    windows: Sequence[Window]
    batch_size: int
    corpus: Corpus | None = None


class Evaluation(Protocol):
    """Measures a model on data of its own, in sums and counts.

    An implementer is a frozen dataclass in a file of its own and one row of
    `research.evals.choose.EVALUATIONS`. The laws, which tests/evals/test_laws.py runs over all:

    - `run` returns sums and counts, never means: those of some data are the sums over its parts.
    - Every count is positive, and two calls with the same model return the same bits.
    - `run` changes nothing in what it is given, and every process returns the same numbers.
    - `values` is a function of the totals, so totals can be added before they become means.
    """

    config: ClassVar[type]  # a dataclass: the fields of `config.evals.NAME`, which chooses it

    @classmethod
    @abstractmethod
    def make(cls, config: Any, data: RunData) -> "Evaluation":
        """The evaluation of a `config` of its own class. ValueError for settings that do not fit,
        before anything is computed."""

    @abstractmethod
    def run(self, opened: Opened) -> Totals:
        """(sum, count) by name. ValueError for a model that it cannot measure."""

    def values(self, totals: Totals) -> dict[str, float]:
        """The reported numbers by name: here the mean of each total."""
        return {name: total / max(count, 1.0) for name, (total, count) in totals.items()}
