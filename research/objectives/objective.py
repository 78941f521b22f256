"""The protocol of objectives: what the train step, the data and evaluation need of each one."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import jax
import numpy as np

from research.data.windows import Windows
from research.models.config import ModelConfig
from research.models.model import Model
from research.objectives.config import ObjectiveConfig
from research.tree import Tree

# (sum, count) pairs by name, which add up over micro-batches, devices and batches as means do not.
Totals = dict[str, tuple[jax.Array, jax.Array]]
Example = dict[str, np.ndarray]

REFERENCE = "reference"  # the model before the first step, of research.tuning.held


class Objective(Protocol):
    """Turns a window of tokens into an example, and a batch of examples into a loss.

    An implementer is one frozen dataclass in a file of its own and one row of
    `research.objectives.choose.OBJECTIVES`. Laws, tested over all in tests/objectives/test_laws.py:

    - `example` takes a window of `window_length(T)` tokens in the layout `reads` and returns fields
      of `research.data.batch.Batch`. Their shapes depend on T alone. Random choices come from the
      generator that is passed in, so a step has the same bits after a resume.
    - `loss` returns sums and counts, never means: a batch's are those of its parts added up, under
      any accumulation, packing and devices. (The balance of experts is taken by micro-batch, and an
      objective of `whole_batch` refuses accumulation.)
    - An example of `weights` 0 adds nothing. The count does not depend on parameters.
    """

    # Read by others in place of tests on the name: a new objective then needs no change elsewhere.
    name: ClassVar[str]  # the value of config.objective.name that chooses it
    config: ClassVar[type[ObjectiveConfig]]  # its settings
    model_kind: ClassVar[str]  # `kind` of the ModelConfig that it trains
    reads: ClassVar[str]  # the layout of its data, a key of research.data.layouts.LAYOUTS
    overlap: int  # tokens that an example shares with the next of its text; a setting of some
    begins_texts: ClassVar[bool]  # training texts have the token that begins a text in front
    answers_chats: ClassVar[bool]  # prompts go through the chat template, answers end with a turn
    classifies: ClassVar[bool]  # it reads `model.labels` labels and no words
    labels_over: ClassVar[str] = "text"  # what has a label, `labels_over` of the ModelConfig
    scores_texts: ClassVar[bool] = False  # one number a text, from a model with `model.labels` = 1
    reports: ClassVar[tuple[str, ...]]  # totals that evaluation reports beside the loss
    bits_per_byte: ClassVar[bool]  # the loss is on every token of a held-out text
    writes_texts: ClassVar[bool] = False  # it learns from texts that the model continues
    holds: ClassVar[tuple[str, ...]] = ()  # frozen trees that it needs, of research.tuning.held
    whole_batch: ClassVar[bool] = False  # a text's loss depends on the others: no micro-batches
    reads_reference: ClassVar[bool] = False  # windows have "reference", the log p of each token

    @classmethod
    @abstractmethod
    def make(cls, config: Any, tokenizer: Any) -> "Objective":
        """The objective of a `cls.config`. ValueError if the tokenizer lacks a token it needs."""

    @abstractmethod
    def window_length(self, sequence_length: int) -> int:
        """The number of tokens a window must have for an example of `sequence_length` tokens."""

    @abstractmethod
    def predicted_tokens(self, sequence_length: int) -> float:
        """Average positions of an example at which a word is predicted; 0 where labels are."""

    @abstractmethod
    def example(self, window: Example, rng: np.random.Generator) -> Example:
        """One row of a batch: fields of `research.data.batch.Batch` without their first axis."""

    @classmethod
    def own_specs(cls, config: Any, model: ModelConfig) -> Tree:
        """Parameters that are trained beside the model's and belong to the objective, below names
        of its own at the top of the tree. They begin anew in every run; what is exported, served
        or started from has none of them."""
        return {}

    def shortfalls(self, windows: Windows) -> list[str]:
        """Lines for the user on targets that these windows lack, such as those of short texts."""
        return []

    @abstractmethod
    def loss(
        self,
        model: Model,
        trainable: Tree,
        held: Mapping[str, Tree],
        batch: dict[str, jax.Array],
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Totals]:
        """(sum of losses in nats, number of targets or texts summed over, further totals by name).

        `trainable` and the trees named in `holds` lie on `held["base"]`, which is {} if all
        parameters are trained. `key` is the random key of dropout, None for no dropout."""
