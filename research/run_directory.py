"""The older name of `research.run.opened`, which scripts outside this tree import."""

from research.interop.restored import read_experiment
from research.run.opened import open_run

__all__ = ["open_run", "read_experiment"]
