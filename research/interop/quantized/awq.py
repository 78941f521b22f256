"""AWQ folders (arXiv:2306.00978) as AutoAWQ writes them, in its layout "gemm". A linear layer of I
inputs in n groups and O outputs has

    NAME.qweight   int32 [I, O / 8], 4-bit codes packed along the outputs
    NAME.qzeros    int32 [n, O / 8], zero points in the same way
    NAME.scales    [n, O]

and stands for (code - zero) * scale. A word holds eight outputs, the first four even ones below
the odd ones: 0, 2, 4, 6, 1, 3, 5, 7.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from research.interop.quantized.matrix import Matrix, Opened, Parts, integer_parts
from research.interop.quantized.settings import choice
from research.interop.quantized.words import unpack
from research.interop.storage.tensors import Tensors

PARTS = ("qweight", "qzeros", "scales")
# Where in a word output 0, 1, 2, ... of its eight lies.
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


def open_awq(settings: Mapping[str, Any], tensors: Tensors) -> Opened:
    """The matrices of a folder with these settings as quantization_config. ValueError for another
    layout, and for matrices with missing or misshapen companions."""
    version = str(settings.get("version") or "gemm").lower()
    choice({"version": version}, "version", ("gemm",))
    choice(settings, "bits", (4,), settings.get("w_bit"))
    matrices, beside = {}, set()
    for name in tensors.names:
        if name.endswith(".qweight"):
            module = name.removesuffix(".qweight")
            matrices[f"{module}.weight"] = _matrix(module, tensors)
            beside |= {f"{module}.{part}" for part in PARTS}
    sizes = sorted({matrix.group for matrix in matrices.values()})
    groups = ", ".join(map(str, sizes))
    return Opened(f"AWQ, 4 bits in groups of {groups}", matrices, beside, {})


def _matrix(module: str, tensors: Tensors) -> Matrix:
    for part in PARTS:
        if f"{module}.{part}" not in tensors.names:
            raise ValueError(f"the checkpoint has {module}.qweight and no {module}.{part}")
    qweight, qzeros, scales = (tensors.names[f"{module}.{part}"].shape for part in PARTS)
    count, outputs = scales
    wanted = (qweight[0], outputs // 8), (count, outputs // 8)
    if (qweight, qzeros) != wanted or qweight[0] % max(count, 1) or outputs % 8:
        raise ValueError(
            f"{module} has qweight {list(qweight)}, qzeros {list(qzeros)} and scales "
            f"{list(scales)}; wanted [I, O / 8], [n, O / 8] and [n, O]"
        )
    return Matrix(
        outputs, qweight[0], "uint4", qweight[0] // count, partial(_read, module, tensors)
    )


def _read(module: str, tensors: Tensors) -> Parts:
    codes, zero = (_outputs(tensors.read(f"{module}.{part}")) for part in PARTS[:2])
    return integer_parts("uint4", codes, tensors.read(f"{module}.scales").T, zero)


def _outputs(words: np.ndarray) -> np.ndarray:
    """Codes [O, rows] of words [rows, O / 8]."""
    codes = unpack(words, 4, words.shape[1] * 8).reshape(*words.shape, 8)
    return np.ascontiguousarray(codes[..., _PLACES].reshape(len(words), -1).T)
