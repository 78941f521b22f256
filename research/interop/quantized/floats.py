"""Folders with 8-bit floats, which transformers calls "fp8" and "fbgemm_fp8". A linear layer has

    NAME.weight             float8 [O, I]
    NAME.weight_scale_inv   [O / R, I / C] for blocks of R x C (DeepSeek V3, arXiv:2412.19437,
                            section 3.3; the last ones may be smaller), or one number
    NAME.weight_scale       the same, or [O, 1]

and stands for weight * scale: the name says that the scale is the inverse of what quantizing
multiplied with.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from research.interop.quantized.matrix import Matrix, Opened, Parts
from research.interop.storage.tensors import Tensors

SCALES = (".weight_scale_inv", ".weight_scale")
# Codes of 8 bits as a file has them, and their format.
FORMATS = {"float8_e4m3fn": "fp8_e4m3", "float8_e5m2": "fp8_e5m2", "int8": "int8"}
# Scales of what flows between the weights there; here that is not quantized.
_ACTIVATIONS = (
    ".input_global_scale",
    ".input_scale",
    ".activation_scale",
    ".output_scale",
    ".input_scale_ub",
)
_CACHES = (".k_scale", ".v_scale", ".q_scale")


def open_floats(settings: Mapping[str, Any], tensors: Tensors) -> Opened:
    """The matrices of a folder with these settings as quantization_config. ValueError for blocks
    that do not fit the scales."""
    block = read_block(settings.get("weight_block_size"))
    matrices = open_scaled(tensors, lambda module: block)
    beside = {f"{name.removesuffix('.weight')}{end}" for name in matrices for end in SCALES}
    size = f" in blocks of {block[0]} x {block[1]}" if block else ""
    return Opened(f"fp8{size}", matrices, beside, unused_scales(tensors))


def open_scaled(tensors: Tensors, block: Any) -> dict[str, Matrix]:
    """Every weight of 8 bits beside a scale, by name; `block(module)` is its (rows, columns) that
    share a scale, None where the scales are of whole rows, runs of a row, or of the matrix."""
    matrices = {}
    for name in tensors.names:
        end = next((end for end in SCALES if name.endswith(end)), None)
        if end is None:
            continue
        module = name.removesuffix(end)
        weight = tensors.names.get(f"{module}.weight")
        if weight is None or len(weight.shape) != 2 or weight.dtype not in FORMATS:
            raise ValueError(
                f"the checkpoint has {name} and no matrix {module}.weight of "
                f"{', '.join(FORMATS)}; fetch it again"
            )
        zero = f"{module}.weight_zero_point"
        matrices[f"{module}.weight"] = scaled_matrix(
            tensors, module, name, zero if zero in tensors.names else "", block(module)
        )
    return matrices


def scaled_matrix(
    tensors: Tensors, module: str, scale: str, zero: str, block: tuple[int, int] | None
) -> Matrix:
    """One of the matrices of `open_scaled`, with the names of its scales and zero points."""
    weight, shape = tensors.names[f"{module}.weight"], tensors.names[scale].shape
    rows, columns = weight.shape
    if math.prod(shape) == 1:
        size = (rows, columns)
    elif block is not None and shape == tuple(-(-a // b) for a, b in zip(weight.shape, block)):
        size = block
    elif len(shape) == 2 and shape[0] == rows and columns % shape[1] == 0:
        size = (1, columns // shape[1])
    else:
        raise ValueError(
            f"{scale} is {list(shape)} for a weight {list(weight.shape)} in blocks of {block}; "
            "fetch the checkpoint again"
        )
    # A zero point of 8-bit integers needs unsigned codes.
    format = "uint8" if zero else FORMATS[weight.dtype]
    read = partial(_read, tensors, module, scale, zero, size)
    return Matrix(rows, columns, format, size[1], read)


def _read(tensors: Tensors, module: str, scale: str, zero: str, size: tuple[int, int]) -> Parts:
    codes = tensors.read(f"{module}.weight")
    scales = _by_row(tensors.read(scale), len(codes), size[0])
    if not zero:
        return Parts(codes, scales)
    # Both signed: the values are (code - zero) * scale whatever is added to both.
    zeros = _by_row(tensors.read(zero), len(codes), size[0])
    return Parts(codes.view(np.uint8) ^ np.uint8(128), scales, zeros + 128)


def _by_row(values: np.ndarray, rows: int, height: int) -> np.ndarray:
    """Scales of blocks [O / height, n] for each row, float32 [O, n]."""
    values = values.astype(np.float32)
    values = values.reshape(-1, values.shape[-1] if values.ndim == 2 else 1)
    return np.repeat(values, height, axis=0)[:rows]


def read_block(value: Any) -> tuple[int, int] | None:
    """(rows, columns) of a block, as JSON has it; None for null. ValueError for anything else."""
    if value is None:
        return None
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(n) is int for n in value):
        if min(value) > 0:
            return tuple(value)
    raise ValueError(f"quantization_config has blocks of {value!r}; wanted two positive numbers")


def unused_scales(tensors: Tensors) -> dict[str, str]:
    """The reason why each scale is not needed that is of no weight."""
    reasons = {}
    for name in tensors.names:
        if name.endswith(_ACTIVATIONS):
            reasons[name] = "scales activations, which are not quantized here"
        elif name.endswith(_CACHES):
            reasons[name] = "scales a quantized cache, which this package scales itself"
    return reasons
