"""The older name of `research.run.opened`, which scripts outside this tree import."""

from research.run.opened import Run, open_run, read_experiment

__all__ = ["Run", "open_run", "read_experiment"]
