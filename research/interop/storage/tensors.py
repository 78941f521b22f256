"""`Tensors`: the named arrays of a checkpoint, read one at a time; the interface that every file
format offers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

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
