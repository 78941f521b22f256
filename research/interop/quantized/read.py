"""Reads matrices of other programs' formats as quantized leaves for our tree, code for code."""

import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from research.interop.quantized.matrix import Matrix, QuantizedTensors
from research.interop.storage import codes
from research.interop.storage.layout import BAR, letter_sizes
from research.interop.storage.modules import Module
from research.interop.storage.parameter import Codes
from research.models.config import ModelConfig
from research.weights.formats import stored_format
from research.weights.packing import pack
from research.weights.quantized import Quantized

# As `research.weights.grouping`: scales of smaller groups would outweigh their codes.
_LEAST_GROUP = 16


@dataclass(frozen=True)
class Form:
    """How a matrix is stored; slices of equal form can be stacked. `group` divides the inputs, and
    the file's own groups where those do not."""

    format: str
    group: int


def leaves_by_path(
    c: ModelConfig,
    known: Mapping[str, Module],
    tensors: QuantizedTensors,
    actual: Mapping[str, str],
) -> dict[str, Codes]:
    """The quantized parameters of a file, by path of our tree; one line is logged on those that can
    only be read dense. Arguments as of `research.interop.storage.codes.codes_by_path`."""
    sizes, reasons = letter_sizes(c), Counter[str]()

    def _form(module: Module, matrix: Matrix) -> Form | None:
        form, reason = _form_of(matrix)
        if reason:
            reasons[reason] += 1
        return form

    def _leaf(module: Module, part: int, matrix: Matrix, form: Form) -> Quantized:
        return _read(module, part, matrix, form, sizes)

    found = codes.codes_by_path(known, actual, tensors.matrices, _form, _leaf)
    for reason, count in reasons.items():
        logging.warning(
            "%d of %d quantized matrices are read dense, at their exact values: %s",
            count,
            len(tensors.matrices),
            reason,
        )
    return found


def _form_of(matrix: Matrix) -> tuple[Form | None, str]:
    """(form, "") or (None, why no leaf holds the matrix)."""
    if matrix.scattered:
        return None, matrix.scattered
    # A group that does not divide the inputs is cut into ones that do, which share its scale.
    group = math.gcd(min(matrix.group, matrix.columns), matrix.columns)
    bits = stored_format(matrix.format).bits
    if group < min(_LEAST_GROUP, matrix.columns) or group * (bits & -bits) % 8:
        return None, f"groups of {matrix.group} do not divide {matrix.columns} inputs"
    return Form(matrix.format, group), ""


def _read(
    module: Module, part: int, matrix: Matrix, form: Form, sizes: Mapping[str, int]
) -> Quantized:
    """One of the weights that a matrix holds, as a leaf of numpy arrays."""
    parts, bits = matrix.read(), stored_format(form.format).bits
    count = matrix.columns // form.group
    grouped = parts.codes.reshape(matrix.rows, count, form.group)
    # The file's group of each of ours.
    theirs = np.arange(count) * form.group // matrix.group

    def _ours(x: np.ndarray) -> np.ndarray:
        return codes.arrange(x, module, part, sizes)

    several = len(module.paths) > 1 and BAR not in module.outputs
    inputs = codes.own_sizes(module.inputs, part, sizes, False)
    outputs = codes.own_sizes(module.outputs, part, sizes, several)
    return Quantized(
        _ours(pack(grouped, bits)),
        _ours(parts.scale[:, theirs, None]),
        None if parts.zero is None else _ours(parts.zero[:, theirs, None]),
        form.format,
        inputs,
        0 if module.table else len(outputs),
    )
