"""`Tensors`: the named arrays of a checkpoint, read one at a time; the interface that every file
format offers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class Tensor:
    """Shape and element type, a name of numpy or ml_dtypes ("float32", "bfloat16")."""

    shape: tuple[int, ...]
    dtype: str


class Tensors(Protocol):
    """Tensors by name. `read` returns a whole one; from quantized formats dequantized, in
    float32."""

    names: Mapping[str, Tensor]

    def read(self, name: str) -> np.ndarray: ...


@runtime_checkable
class StoredTensors(Tensors, Protocol):
    """Tensors that lie in files as they are. `fill` reads the bytes of a tensor from its element
    `start` on into uint8 memory, until it is full; several threads may do so at once. `place` is
    (file, first byte) of a tensor."""

    def fill(self, name: str, start: int, memory: np.ndarray) -> None: ...

    def place(self, name: str) -> tuple[str, int]: ...


def as_dtype(name: str) -> np.dtype:
    """The numpy type of a name, including those of ml_dtypes ("bfloat16")."""
    return np.dtype(getattr(ml_dtypes, name, name))
