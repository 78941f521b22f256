"""The protocol of feeds, from which a training loop takes its batches."""

from abc import abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

from research.data.loader import Batch
from research.training.state import TrainState


class Feed(Protocol):
    """An iterator over the batches of a run, one a step, on the host.

    A feed reads windows of a corpus, repeats one batch for a benchmark, or makes batches during
    training, for example from texts that the model has generated:

        feed.begin(step, state)
        with feed:
            feed.offer(train_state)
            step, batch = next(feed)
            state = feed.state()

    Laws, tested over all implementers in tests/run/test_feed_laws.py:

    - `begin(s, state)` comes first, `offer` before each `next`; then `next` returns steps s, s + 1,
      s + 2, ...
    - If `state()` returned `saved` before step s, then a feed after `begin(s, saved)` returns the
      same bits from step s on as the feed that was not interrupted.
    - `state()` is JSON, and small, because it is saved with every checkpoint. {} means that the
      step alone determines the batches that follow.
    - Every batch has the same fields and shapes. A process gets its own rows; the rows of all
      processes together are the global batch.
    - `close` ends threads and may be called twice.
    """

    @abstractmethod
    def begin(self, step: int, state: Mapping[str, Any]) -> None:
        """Moves to a step: 0 with {} in a new run, otherwise a saved step with its `state()`."""

    def offer(self, state: TrainState) -> None:
        """Called with the state of the step before each `next`, for feeds that make batches with
        the model. After `next` its arrays may be gone: the step takes them over."""
        return None

    @abstractmethod
    def __next__(self) -> tuple[int, Batch]:
        """The step and its batch, fields of `research.data.batch.Batch` with a first axis B."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The JSON values that `begin` needs, together with the step, to continue from here."""

    def values(self) -> dict[str, float]:
        """Numbers by name to log beside the metrics of the step on the last batch."""
        return {}

    def samples(self) -> list[tuple[str, str]]:
        """(prompt, text) pairs to show of the last batch; [] has a sample generated instead."""
        return []

    @abstractmethod
    def close(self) -> None:
        """Ends threads that read ahead."""

    # Leaving the block closes the feed, so that its threads do not outlive an error of the loop.
    def __enter__(self) -> "Feed":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
