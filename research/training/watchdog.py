"""A watchdog: ends a run that hangs, so that its launcher starts it again.

A device that waits for a collective waits for ever if another process never gets there, and so does
a write to a file system that has gone. Nothing else notices.
"""

import dataclasses
import faulthandler
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax

from research.parallel import peers

# Steps that are under way on the devices at a time: more would not make them faster.
_AHEAD = 8


@dataclass(frozen=True)
class WatchdogConfig:
    """Seconds that a part of a run may take without getting on, after which the process prints the
    stacks of its threads and ends with exit code 42; 0 is no limit.

    start        reading and tokenizing the data, and making the first state
    restore      reading a checkpoint
    compile      the first step
    step         each further step, with the wait for its batch
    evaluate     an evaluation, or a sample
    save         saving a checkpoint, or the wait for the one before
    """

    start: float = 14400.0
    restore: float = 3600.0
    compile: float = 7200.0
    step: float = 1800.0
    evaluate: float = 14400.0
    save: float = 3600.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not 0 <= getattr(self, field.name) < float("inf"):
                raise ValueError(
                    f"watchdog.{field.name}={getattr(self, field.name)} must be a number of "
                    "seconds, 0 for no limit"
                )


class Watchdog:
    """A context manager with a thread that ends the process when a part of a run hangs.

        with Watchdog(config) as watchdog:      # "start" until another part is named
            with watchdog.during("restore"): ...
            with watchdog.during("step"):
                while True:
                    watchdog.dispatched(step(...))

    Outside the context it watches nothing. `end` is called with a line about what hangs.
    """

    def __init__(
        self,
        config: WatchdogConfig = WatchdogConfig(),
        end: Callable[[str], None] = peers.leave_hanging,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._config, self._end, self._clock = config, end, clock
        self._part, self._alive = "start", 0
        self._under_way: deque[Any] = deque()
        self._ended = threading.Event()
        limits = [limit for limit in dataclasses.astuple(config) if limit]
        # Half a limit at most, so that a short one is met in time.
        self._every = min(1.0, *(limit / 2 for limit in limits)) if limits else 1.0

    def __enter__(self) -> "Watchdog":
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ended.set()
        self._thread.join()

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """A context with the limit of the field `part` of the config."""
        before, self._part = self._part, part
        self.alive()
        try:
            yield
        finally:
            self._part = before
            self.alive()

    def alive(self) -> None:
        """Says that the run gets on."""
        self._alive += 1

    def dispatched(self, metrics: Any) -> None:
        """Takes the metrics of a step that the devices have yet to compute, and waits for those of
        a step some way back: the devices are never idle, and each step that ends is seen."""
        self._under_way.append(metrics)
        while len(self._under_way) > _AHEAD:
            self._wait()

    def drain(self) -> None:
        """Waits for all steps that are under way, each of which has its own time."""
        while self._under_way:
            self._wait()

    def _wait(self) -> None:
        jax.block_until_ready(self._under_way.popleft())
        self.alive()

    def _watch(self) -> None:
        seen, waited, last = -1, 0.0, self._clock()
        while not self._ended.wait(self._every):
            now = self._clock()
            # A process that was stopped (Ctrl-Z, a debugger, a frozen machine) does not hang.
            waited, last = waited + min(now - last, 2 * self._every), now
            if self._alive != seen:
                seen, waited = self._alive, 0.0
            part = self._part
            limit = getattr(self._config, part)
            if limit and waited > limit:
                faulthandler.dump_traceback(2)
                self._end(
                    f"no sign of life for {waited:,.0f} s in the part {part!r} of the run, whose "
                    f"limit is config.watchdog.{part}={limit:g}; the stacks are above"
                )
                return
