"""The protocol of objectives: what the train step, the data and evaluation ask of each."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import jax
import numpy as np

from research.models.model import Model
from research.objectives.config import ObjectiveConfig
from research.tree import Tree

Totals = dict[str, tuple[jax.Array, jax.Array]]


class Objective(Protocol):
    """Turns a window of tokens into an example, and a batch of examples into a sum of losses.

    An implementer is one frozen dataclass in a file of its own and one row of
    `research.objectives.choose.OBJECTIVES`. The laws, which tests/objectives/test_laws.py runs
    over all of them:

    - `example` takes a window of `window_length(T)` tokens, of the layout `reads`, and gives fields
      of `research.data.batch.Batch` whose shapes depend on T alone. Whatever is random in it comes
      from its generator, so a step has the same bits after a resume.
    - `loss` returns sums and counts, never means: those of a batch are the sums over its parts, so
      accumulation, packing and the number of devices do not change the loss.
    - An example whose `weights` are 0 adds nothing to the loss, the count or the totals.
    - `loss` can be traced, and its count does not depend on parameters.
    """

    name: ClassVar[str]  # in config.objective.name
    config: ClassVar[type[ObjectiveConfig]]  # the fields of config.objective that it has
    model_kind: ClassVar[str]  # `kind` of the ModelConfig that it trains
    reads: ClassVar[str]  # the layout of its data, a name of research.data.layouts.LAYOUTS
    overlap: ClassVar[int]  # tokens that an example shares with the next of a packed text
    begins_texts: ClassVar[bool]  # training texts have the token that begins a text in front
    answers_chats: ClassVar[bool]  # prompts go through the chat template, answers end with a turn
    classifies: ClassVar[bool]  # one class a text, from `model.labels` classes
    reports: ClassVar[tuple[str, ...]]  # totals that evaluation reports beside the loss
    bits_per_byte: ClassVar[bool]  # the loss is on every token of a held-out text
    holds: ClassVar[tuple[str, ...]] = ()  # frozen trees that it needs, of research.tuning.held

    @classmethod
    @abstractmethod
    def make(cls, config: Any, tokenizer: Any) -> "Objective":
        """The objective of a `config` of its own class. ValueError where the tokenizer lacks a
        token that it needs."""

    @abstractmethod
    def window_length(self, sequence_length: int) -> int:
        """Tokens of a window whose example is `sequence_length` long."""

    @abstractmethod
    def predicted_tokens(self, sequence_length: int) -> float:
        """Positions of an example, on average, whose loss counts; 0 for an objective that reads
        the pooled text alone."""

    @abstractmethod
    def example(
        self, window: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """One row of a batch: fields of `research.data.batch.Batch` without their first axis."""

    @abstractmethod
    def loss(
        self,
        model: Model,
        trainable: Tree,
        held: Mapping[str, Tree],
        batch: dict[str, jax.Array],
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Totals]:
        """(sum of losses in nats, count of what it is over, further (sum, count) pairs by name).

        `held` are the trees that are not trained: `held["base"]`, {} where everything is trained,
        is what `trainable` and the trees of `holds` are attached to. `key` is of the dropout, None
        for none.
        """
