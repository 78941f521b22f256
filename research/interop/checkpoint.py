"""The older name of `research.interop.storage.checkpoint`, for scripts outside this tree."""

from research.interop.storage.checkpoint import Checkpoint, specs_by_path, stacked_axes
from research.interop.storage.parameter import Parameter

__all__ = ["Checkpoint", "Parameter", "specs_by_path", "stacked_axes"]
