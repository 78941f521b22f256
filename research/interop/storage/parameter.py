"""Parameters of an opened checkpoint, which are read slice by slice."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


# Nothing is read when a checkpoint is opened: a 70B model may be opened to look at its config.
@dataclass(frozen=True)
class Parameter:
    """One parameter in storage, not yet read. `read` takes an index over the first `stack` axes
    (layers and experts) and returns that slice; nothing else is read. A `read` that has a method
    `tiles` can be read in parts as well (`research.interop.storage.slices.Slices`).

        parameter.read((3,))        # layer 3 of a parameter [L, ...]
    """

    shape: tuple[int, ...]
    dtype: str
    stack: int
    read: Callable[[tuple[int, ...]], np.ndarray]

    def indices(self) -> Iterator[tuple[int, ...]]:
        """Every index that `read` takes, in order; one empty index for an unstacked parameter."""
        return np.ndindex(*self.shape[: self.stack])


@dataclass(frozen=True)
class Codes:
    """A parameter that is quantized in storage. `forms` says for each slice how, None if it is
    plain numbers; slices of equal form can be stacked. `read` returns a quantized slice as a leaf
    of numpy arrays."""

    forms: Mapping[tuple[int, ...], Any]
    read: Callable[[tuple[int, ...]], Any]
