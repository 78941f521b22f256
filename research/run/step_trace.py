"""Profiler traces of training steps, for xprof."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from research.training.metrics import RunLog


@dataclass(frozen=True)
class StepTrace:
    """Writes a trace of devices and host in `steps`, of a run of `total` steps, to `folder`; an
    empty range traces nothing. A run that starts at `first` inside the range is traced from
    there."""

    steps: range
    first: int
    total: int
    folder: Path

    def before(self, step: int) -> None:
        """Called before each step."""
        if step in self.steps and step == max(self.steps.start, self.first):
            jax.profiler.start_trace(str(self.folder))

    def after(self, step: int, state: Any, log: RunLog) -> None:
        """Called when `step` steps have been started. Waits for the last traced one to finish,
        since devices run behind the host."""
        if step - 1 in self.steps and step in (self.steps.stop, self.total):
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            log.note(f"wrote the trace of steps {self.steps.start} to {step} to {self.folder}")
