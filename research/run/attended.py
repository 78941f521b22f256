"""What attends a run while it trains."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from research.stopping import StopRequest
from research.training.metrics import RunLog
from research.training.watchdog import Watchdog


@dataclass(frozen=True)
class Attended:
    """The request to stop a run, its watchdog, the steps to trace with the profiler, whether the
    run shows a bar, and the step to leave off at (see `research.run.loop.train`)."""

    request: StopRequest
    watchdog: Watchdog = field(default_factory=Watchdog)
    profile: range = range(0)
    live: bool | None = None
    until: int = 0

    @contextmanager
    def pause(self, log: RunLog, what: str, part: str) -> Iterator[None]:
        """A pause of the log, with the limit of `part` for its time. Steps that are under way end
        before it, so that it has only its own."""
        self.watchdog.drain()
        with log.pause(what), self.watchdog.during(part):
            yield
