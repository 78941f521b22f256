"""Profiler traces of training steps, for xprof."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from research.training.metrics import RunLog


@dataclass(frozen=True)
class StepTrace:
    """Writes a profiler trace of devices and host during `steps` to `folder`.

    The run starts at step `first`, from where it is traced if that is inside the range, and ends
    after `total` steps. An empty range traces nothing.
    """

    steps: range
    first: int
    total: int
    folder: Path

    def before(self, step: int) -> None:
        """Call this before each step; `step` is the number of steps done."""
        if step in self.steps and step == max(self.steps.start, self.first):
            jax.profiler.start_trace(str(self.folder))

    def after(self, step: int, state: Any, log: RunLog) -> None:
        """Call this when `step` steps have been started. It waits for the last traced step to
        finish, because devices run behind the host."""
        if step - 1 in self.steps and step in (self.steps.stop, self.total):
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            log.note(f"wrote the trace of steps {self.steps.start} to {step} to {self.folder}")
