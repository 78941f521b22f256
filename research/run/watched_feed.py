"""A feed that says how long it was waited for."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from research.data.loader import Batch
from research.run.feed import Feed
from research.training.state import TrainState


@dataclass(frozen=True)
class WatchedFeed(Feed):
    """Another feed whose every batch is fetched inside a context `waiting()`, which keeps the
    time."""

    feed: Feed
    waiting: Callable[[], AbstractContextManager[None]]

    def begin(self, step: int, state: Mapping[str, Any]) -> None:
        """As of the feed."""
        self.feed.begin(step, state)

    def offer(self, state: TrainState) -> None:
        """As of the feed."""
        self.feed.offer(state)

    def __next__(self) -> tuple[int, Batch]:
        with self.waiting():
            return next(self.feed)

    def state(self) -> dict[str, Any]:
        """As of the feed."""
        return self.feed.state()

    def values(self) -> dict[str, float]:
        """As of the feed."""
        return self.feed.values()

    def samples(self) -> list[tuple[str, str]]:
        """As of the feed."""
        return self.feed.samples()

    def close(self) -> None:
        """As of the feed."""
        self.feed.close()
