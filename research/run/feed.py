"""The protocol of feeds, from which a training loop takes its batches."""

from abc import abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

from research.data.loader import Batch


class Feed(Protocol):
    """Gives one batch a step, on the host, until it is closed.

    A feed reads windows of a corpus, repeats a batch for a benchmark, or makes batches during
    training, such as from texts that the model has generated. A loop uses it so:

        feed.begin(step, saved)  # 0 and {} in a new run
        with feed:
            for _ in range(1000):
                step, batch = next(feed)
            saved = feed.state()

    Its laws, tested over all implementers in tests/run/test_feed_laws.py:

    - `begin(s, state)` comes first; then `next` gives steps s, s + 1, s + 2, ...
    - A feed that begins at step s with what `state()` was before step s gives the same bits from s
      on as the feed that was not interrupted.
    - `state()` is JSON, and small, since it is saved with every checkpoint. {} means that the step
      alone determines what follows.
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
        """JSON values that must be saved, beside the step, to go on with the next one."""

    @abstractmethod
    def close(self) -> None:
        """Ends threads that read ahead."""

    def __enter__(self) -> "Feed":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
