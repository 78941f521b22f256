"""What the formats of other programs have in common: a matrix stored as codes, with a scale for
each run of inputs and perhaps a zero point, and the tensors of a folder read as if it were dense.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from research.interop.storage.tensors import Tensor, Tensors
from research.weights.formats import stored_format


class Parts(NamedTuple):
    """The arrays of a matrix [O, I] = [out, in] whose inputs are in n groups.

    codes   [O, I], one for each element and not packed, as `encode` of its format gives them
    scale   float32 [O, n], or exponents uint8 as leaves have them (e8m0)
    zero    float32 [O, n], as the format uses it; None for a format without
    groups  the group of each input, int [I]; None where groups are runs of inputs
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None = None
    groups: np.ndarray | None = None


@dataclass(frozen=True)
class Matrix:
    """A quantized matrix of a file, unread.

    rows, columns   its shape [out, in], whatever the order in the file
    format          name of the format of its codes, see `research.weights.formats.stored_format`
    group           inputs that share a scale; the last group may be shorter
    read            reads its arrays
    scattered       why its groups are no runs of inputs, "" where they are
    """

    rows: int
    columns: int
    format: str
    group: int
    read: Callable[[], Parts]
    scattered: str = ""


class Opened(NamedTuple):
    """What a format's reader finds in a folder.

    name       the format with its numbers, for people: "GPTQ, 4 bits in groups of 128"
    matrices   by the name that the dense weight would have
    beside     names of the tensors that belong to a matrix
    unused     why each further tensor is not needed
    """

    name: str
    matrices: dict[str, Matrix]
    beside: set[str]
    unused: dict[str, str]


@dataclass(frozen=True)
class QuantizedTensors:
    """The tensors of a folder. A quantized one appears under its own name as float32, which holds
    the value of every code of these formats; its companions are left out of `names`."""

    names: Mapping[str, Tensor]
    matrices: Mapping[str, Matrix]
    _tensors: Tensors = field(repr=False)
    _transposed: Callable[[str], bool] = field(repr=False)

    def read(self, name: str) -> np.ndarray:
        """A whole tensor, a quantized one as [out, in] or as its class keeps it."""
        matrix = self.matrices.get(name)
        if matrix is None:
            return self._tensors.read(name)
        values = dense(matrix)
        return np.ascontiguousarray(values.T) if self._transposed(name) else values


def read_dense(
    opened: Opened, tensors: Tensors, transposed: Callable[[str], bool]
) -> QuantizedTensors:
    """The tensors as those of an unquantized folder. `transposed(name)` is True for weights that
    their class keeps as [in, out]."""
    hidden = opened.beside | opened.unused.keys()
    names = {name: one for name, one in tensors.names.items() if name not in hidden}
    for name, matrix in opened.matrices.items():
        shape = (matrix.rows, matrix.columns)
        names[name] = Tensor(shape[::-1] if transposed(name) else shape, "float32")
    return QuantizedTensors(names, opened.matrices, tensors, transposed)


def dense(matrix: Matrix) -> np.ndarray:
    """The values of a matrix, float32 [out, in]."""
    parts, format = matrix.read(), stored_format(matrix.format)
    groups = parts.groups
    if groups is None:
        groups = np.arange(matrix.columns) // matrix.group
    if format.codes == "book":
        values = format.book[parts.codes].astype(np.float32)
    else:
        values = parts.codes.astype(np.float32)
    if parts.zero is not None and format.codes == "affine":
        values -= parts.zero[:, groups]
    if parts.scale.dtype == np.uint8:
        np.ldexp(values, parts.scale[:, groups].astype(np.int32) - 127, out=values)
    else:
        values *= parts.scale[:, groups]
    if parts.zero is not None and format.codes == "offset":
        values += parts.zero[:, groups]
    return values


def integer_format(bits: int, signed: bool = False) -> str:
    """The format that holds integers of so many bits exactly; with `signed` those of 4 and 8 bits
    whose zero point is the middle, which kernels multiply and which need no zero points."""
    if signed and bits in (4, 8):
        return f"int{bits}"
    return f"uint{bits}"


def integer_parts(
    format: str,
    codes: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray | int,
    groups: np.ndarray | None = None,
) -> Parts:
    """Unsigned codes [O, I] that stand for (code - zero) * scale, `scale` [O, n], as the parts of a
    matrix in what `integer_format` chose."""
    scale = scale.astype(np.float32)
    if format.startswith("int"):
        middle = 2 ** (stored_format(format).bits - 1)
        return Parts((codes.astype(np.int16) - middle).astype(np.int8), scale, None, groups)
    return Parts(codes, scale, np.broadcast_to(np.asarray(zero, np.float32), scale.shape), groups)
