"""Refusal of NaN and infinity in what is written: no program can compute with such a checkpoint,
and one that is found later is blamed on the reader.
"""

from collections.abc import Callable
from dataclasses import replace

import ml_dtypes
import numpy as np

from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.parameter import Parameter

Read = Callable[[tuple[int, ...]], np.ndarray]


class NotFinite(ValueError):
    """Values that cannot be written, "it has ..."; whoever writes knows the tensor's name and puts
    it in front."""


def checked(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, whose parameters raise `NotFinite` when a slice with NaN or infinity is
    read."""
    return _with_reads(checkpoint, _checked)


def cast(checkpoint: Checkpoint, dtype: np.dtype) -> Checkpoint:
    """The checkpoint with its parameters in another floating type, cast slice by slice as they are
    read; `NotFinite` for a number that the type is too small for. Nothing of it is stored as codes
    any more."""
    narrowed = _with_reads(checkpoint, lambda read: _cast(read, dtype))
    parameters = {
        path: replace(parameter, dtype=dtype.name)
        for path, parameter in narrowed.parameters.items()
    }
    return replace(narrowed, parameters=parameters, codes={})


# Checkpoints are lazy, so a check or a cast wraps `read` and happens slice by slice as it is
# written.
def _with_reads(checkpoint: Checkpoint, wrap: Callable[[Read], Read]) -> Checkpoint:
    parameters: dict[str, Parameter] = {
        path: replace(parameter, read=wrap(parameter.read))
        for path, parameter in checkpoint.parameters.items()
    }
    return replace(checkpoint, parameters=parameters)


def _checked(read: Read) -> Read:
    def _read(index: tuple[int, ...]) -> np.ndarray:
        values = read(index)
        if not (finite := np.isfinite(values)).all():
            bad = values.size - np.count_nonzero(finite)
            raise NotFinite(
                f"it has {bad:,} of {values.size:,} values that are NaN or infinite; take a "
                "checkpoint from before they came up"
            )
        return values

    return _read


def _cast(read: Read, dtype: np.dtype) -> Read:
    # float16 ends at 65504, bfloat16 a little before float32.
    largest = float(ml_dtypes.finfo(dtype).max)
    others = "bfloat16 or float32" if dtype.name == "float16" else "float32"

    def _read(index: tuple[int, ...]) -> np.ndarray:
        values = read(index)
        with np.errstate(over="ignore"):
            narrow = values.astype(dtype)
        # Only what the cast itself made infinite: NaN and infinity of the source are `checked`'s
        # to report.
        if not (np.isfinite(narrow) | ~np.isfinite(values)).all():
            raise NotFinite(
                f"it has values beyond {largest:g}, {dtype.name}'s largest; choose {others}"
            )
        return narrow

    return _read
