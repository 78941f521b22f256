"""A feed that repeats one batch, for benchmarks (`research.bench.contender.step_of`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from research.data.loader import Batch
from research.run.feed import Feed


@dataclass
class RepeatedFeed(Feed):
    """Returns `batch`, the rows of this process, at every step."""

    batch: Batch
    _step: int = field(default=0, init=False)

    def begin(self, step: int, state: Mapping[str, Any]) -> None:
        """Counts on from `step`."""
        self._step = step

    def __next__(self) -> tuple[int, Batch]:
        self._step += 1
        return self._step - 1, self.batch

    def state(self) -> dict[str, Any]:
        """{}: the step alone is enough."""
        return {}

    def close(self) -> None:
        """Does nothing: this feed has no threads."""
