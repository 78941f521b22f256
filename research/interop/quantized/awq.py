"""AWQ folders (arXiv:2306.00978) as AutoAWQ writes them. A linear layer of I inputs in n groups and
O outputs stands for (code - zero) * scale, codes and zero points of 4 bits. In the layout "gemm"

    NAME.qweight   int32 [I, O / 8], codes packed along the outputs
    NAME.qzeros    int32 [n, O / 8], zero points in the same way
    NAME.scales    [n, O]

where a word holds eight outputs, the first four even ones below the odd ones: 0, 2, 4, 6, 1, 3, 5,
7. In the layout "gemv" all are packed along the inputs, in order, and the groups filled up to w
words:

    NAME.qweight   int32 [O, I / 8]
    NAME.qzeros    int32 [O, w]
    NAME.scales    [O, 8 w]
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from research.interop.quantized.matrix import Matrix, Opened, Parts, integer_parts
from research.interop.quantized.settings import choice, positive
from research.interop.quantized.words import unpack
from research.interop.storage.tensors import Tensors

PARTS = ("qweight", "qzeros", "scales")
# Where in a word of "gemm" output 0, 1, 2, ... of its eight lies.
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


def open_awq(settings: Mapping[str, Any], tensors: Tensors) -> Opened:
    """The matrices of a folder with these settings as quantization_config. ValueError for another
    layout, and for matrices with missing or misshapen companions."""
    version = str(settings.get("version") or "gemm").lower()
    choice({"version": version}, "version", tuple(_LAYOUTS))
    choice(settings, "bits", (4,), settings.get("w_bit"))
    matrices, beside = {}, set()
    for name in tensors.names:
        if name.endswith(".qweight"):
            module = name.removesuffix(".qweight")
            for part in PARTS:
                if f"{module}.{part}" not in tensors.names:
                    raise ValueError(f"the checkpoint has {module}.qweight and no {module}.{part}")
            matrices[f"{module}.weight"] = _LAYOUTS[version](module, tensors, settings)
            beside |= {f"{module}.{part}" for part in PARTS}
    sizes = sorted({matrix.group for matrix in matrices.values()})
    groups = ", ".join(map(str, sizes))
    return Opened(f"AWQ, 4 bits in groups of {groups}", matrices, beside, {})


def _gemm(module: str, tensors: Tensors, settings: Mapping[str, Any]) -> Matrix:
    qweight, qzeros, scales = _shapes(module, tensors)
    inputs, (count, outputs) = qweight[0], scales
    wanted = (inputs, outputs // 8), (count, outputs // 8)
    if (qweight, qzeros) != wanted or inputs % max(count, 1) or outputs % 8:
        raise _misshapen(module, tensors, "[I, O / 8], [n, O / 8] and [n, O]")
    return Matrix(outputs, inputs, "uint4", inputs // count, partial(_read_gemm, module, tensors))


def _gemv(module: str, tensors: Tensors, settings: Mapping[str, Any]) -> Matrix:
    qweight, qzeros, scales = _shapes(module, tensors)
    outputs, inputs = qweight[0], qweight[1] * 8
    # The groups are filled up to whole words, so the shapes do not tell their size.
    size = settings.get("group_size", settings.get("q_group_size"))
    group = positive({"group_size": size}, "group_size", inputs)
    count = inputs // group
    if qzeros[0] != outputs or scales != (outputs, qzeros[1] * 8) or count * group != inputs:
        raise _misshapen(module, tensors, f"[O, I / 8], [O, w] and [O, 8 w] in groups of {group}")
    if count > scales[1]:
        raise _misshapen(module, tensors, f"{count} scales an output in groups of {group}")
    return Matrix(outputs, inputs, "uint4", group, partial(_read_gemv, module, tensors, count))


_LAYOUTS = {"gemm": _gemm, "gemv": _gemv}


def _shapes(module: str, tensors: Tensors) -> list[tuple[int, ...]]:
    shapes = [tensors.names[f"{module}.{part}"].shape for part in PARTS]
    if any(len(shape) != 2 for shape in shapes):
        raise _misshapen(module, tensors, "two axes each")
    return shapes


def _misshapen(module: str, tensors: Tensors, wanted: str) -> ValueError:
    got = [f"{part} {list(tensors.names[f'{module}.{part}'].shape)}" for part in PARTS]
    return ValueError(f"{module} has {', '.join(got)}; wanted {wanted}")


def _read_gemm(module: str, tensors: Tensors) -> Parts:
    codes, zero = (_outputs(tensors.read(f"{module}.{part}")) for part in PARTS[:2])
    return integer_parts("uint4", codes, tensors.read(f"{module}.scales").T, zero)


def _read_gemv(module: str, tensors: Tensors, count: int) -> Parts:
    words, zeros, scales = (tensors.read(f"{module}.{part}") for part in PARTS)
    codes = unpack(words, 4, words.shape[1] * 8)
    return integer_parts("uint4", codes, scales[:, :count], unpack(zeros, 4, count))


def _outputs(words: np.ndarray) -> np.ndarray:
    """Codes [O, rows] of words [rows, O / 8] of the layout "gemm"."""
    codes = unpack(words, 4, words.shape[1] * 8).reshape(*words.shape, 8)
    return np.ascontiguousarray(codes[..., _PLACES].reshape(len(words), -1).T)
