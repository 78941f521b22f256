"""The protocol of jobs: what a command line asks of each one."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from research.apply.documents import Document
from research.apply.writer import Writer

# What one document gives: fields of its line, "output" among them, or why it is left out.
Result = dict[str, Any] | ValueError


class Job(Protocol):
    """Makes an output of each document with a model.

    An implementer is one frozen dataclass in a file of its own and one row of `JOBS` in
    `research.apply.jobs`; its fields are the flags that it reads, and `make` takes them all. Laws:

    - `run` returns a result for each document, in their order, and a bad document is a ValueError
      in its place: the others are done.
    - A document's result does not depend on the others of its batch.
    """

    max_tokens: ClassVar[int]  # most tokens of an output where nothing is asked
    temperature: ClassVar[float] = 0.0

    @classmethod
    @abstractmethod
    def make(cls, flags: Mapping[str, Any], writer: Writer) -> "Job":
        """The job with the settings of the command line. ValueError for those that do not fit."""

    @abstractmethod
    def input(self, document: Document) -> str:
        """What is shown as the "input" of the document's line. ValueError for a record without
        it."""

    @abstractmethod
    def run(self, documents: Sequence[Document], writer: Writer) -> list[Result]:
        """A result for each document."""

    def report(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Numbers over all lines of the output."""
        return {}
