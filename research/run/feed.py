"""The protocol of feeds: what a training loop takes its batches from."""

from abc import abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

from research.data.loader import Batch


class Feed(Protocol):
    """Gives one batch a step, on the host, until it is closed.

    Windows of a corpus are a feed, and so is whatever makes its batches on the way, such as answers
    that the model itself has written. The laws, which tests/run/test_feed_laws.py runs over all:

    - `begin(s, state)` comes first; then `next` gives steps s, s + 1, s + 2, ...
    - A feed that begins at step s with what `state()` was before step s gives the same bits from s
      on as the feed that was not interrupted.
    - `state()` is JSON, and small: it is saved with every checkpoint. {} says that the step is all
      there is to know.
    - Every batch has the same fields and shapes: the rows of this process, which together with
      those of the other processes are the global batch.
    - `close` ends threads and may be called twice.
    """

    @abstractmethod
    def begin(self, step: int, state: Mapping[str, Any]) -> None:
        """Goes to a step: 0 with {} for a new run, else with the `state()` that was saved."""

    @abstractmethod
    def __next__(self) -> tuple[int, Batch]:
        """The step and its batch, fields of `research.data.batch.Batch` with a first axis B."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What must be saved to go on with the next step, beside its number."""

    @abstractmethod
    def close(self) -> None:
        """Ends what reads ahead."""

    def __enter__(self) -> "Feed":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
