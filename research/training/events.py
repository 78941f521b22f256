"""`events.jsonl`: what a run did when, from which `goodput` adds up its time."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from research.devices.energy import Meter

EVENTS = "events.jsonl"


class Events:
    """Appends to `events.jsonl` of a run, one JSON object a line with `time` (seconds since 1970):

    begin   a process begins or resumes the run after `step` steps; `started` is when the process
            itself started, `host` and `pid` are its own
    pause   a stretch of time other than steps has ended: `what` it was (compiling, evaluating,
            sampling, saving) and its `seconds`
    step    `step` is done; of the time since the last line, `waited` seconds went by until the
            batches were there; `joules` is what this machine has used since the `begin`, by "cpu"
            and "gpu", where it counts that (`research.devices.energy`)

    Unlike the rows of metrics.jsonl, those of steps that are run again stay: the time is gone.
    Without a `folder`, as in all processes of a job but the first, nothing is written.
    """

    def __init__(self, folder: Path | None, step: int, clock: Callable[[], float] = time.time):
        self._folder, self._clock, self._waited = folder, clock, 0.0
        if folder is None:
            return
        self._meter = Meter()
        folder.mkdir(parents=True, exist_ok=True)
        # A line that a crash cut short must not swallow the next one.
        with open(folder / EVENTS, "a", encoding="utf-8") as file:
            file.write("\n" * (file.tell() > 0))
        self._write(
            "begin",
            step=step,
            started=min(process_start(), clock()),
            host=socket.gethostname(),
            pid=os.getpid(),
        )

    def pause(self, what: str, seconds: float) -> None:
        """A stretch of time ends now."""
        self._write("pause", what=what, seconds=seconds)

    def step(self, step: int) -> None:
        """A step that is logged is done."""
        joules = {} if self._folder is None else self._meter.joules()
        used = {"joules": joules} if joules else {}
        self._write("step", step=step, waited=self._waited, **used)
        self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A context in which the run waits for its data."""
        start = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - start

    def _write(self, event: str, **values: Any) -> None:
        if self._folder is None:
            return
        line = {"time": self._clock(), "event": event, **values}
        # Opened for each line: they are few, and nothing is left to close.
        with open(self._folder / EVENTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_events(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The events of a run directory in the order in which they were written; [] if there are none.
    Lines that a crash has cut short are left out."""
    path = Path(folder) / EVENTS
    if not path.exists():
        return []
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and {"time", "event"} <= event.keys():
            events.append(event)
    return events


def process_start() -> float:
    """When this process started, in seconds since 1970; where the system does not tell it, now."""
    try:
        # Field 22 counts from the boot; the name in field 2 may have spaces, but no later ")".
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.time() - (float(Path("/proc/uptime").read_text().split()[0]) - ticks)
    except (OSError, ValueError, IndexError):
        return time.time()
