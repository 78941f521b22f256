"""Folders of MLX (mlx_lm.convert -q), whose config.json has `quantization`. A quantized linear
layer or table of O rows and I columns, in n groups, has

    NAME.weight   uint32 [O, I bits / 32], codes as one stream of bits
    NAME.scales   [O, n]
    NAME.biases   [O, n]

and stands for code * scale + bias ("affine"; the default of MLX's `quantize`). The other modes have
codes that are floats, scales of 8 bits and no biases (fp_quantized.h of mlx):

    mxfp4   codes e2m1, groups of 32, scales e8m0 (exponents)
    nvfp4   codes e2m1, groups of 16, scales e4m3
    mxfp8   codes e4m3, groups of 32, scales e8m0
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from research.interop.quantized.matrix import Matrix, Opened, Parts
from research.interop.quantized.settings import choice, positive
from research.interop.quantized.stacks import stack_of
from research.interop.quantized.words import unpack
from research.interop.storage.tensors import Tensors

BITS = (2, 3, 4, 5, 6, 8)


class Floats(NamedTuple):
    """A mode whose codes are floats: their bits, the group, the format of the codes, and whether
    scales are exponents."""

    bits: int
    group: int
    format: str
    exponents: bool


MODES = {
    "mxfp4": Floats(4, 32, "mxfp4", True),
    "nvfp4": Floats(4, 16, "mxfp4", False),
    "mxfp8": Floats(8, 32, "fp8_e4m3", True),
}


def is_mlx(settings: Any) -> bool:
    """True if a config.json's `quantization` is MLX's."""
    return isinstance(settings, dict) and {"group_size", "bits"} <= settings.keys()


def open_mlx(settings: Mapping[str, Any], tensors: Tensors) -> Opened:
    """The matrices of a folder with these settings as `quantization`. ValueError for unknown
    modes and for matrices with misshapen companions."""
    matrices, beside = {}, set()
    for name in tensors.names:
        if not name.endswith(".scales"):
            continue
        module = name.removesuffix(".scales")
        # A module may have an entry of its own, with its own bits and groups.
        own = settings.get(stack_of(module))
        plain = {key: settings[key] for key in ("mode", "bits", "group_size") if key in settings}
        matrices[f"{module}.weight"] = _matrix(
            module, tensors, own if isinstance(own, dict) else plain
        )
        beside |= {f"{module}.scales", f"{module}.biases"}
    return Opened(_called(settings), matrices, beside, {})


def _called(settings: Mapping[str, Any]) -> str:
    if settings.get("mode") in MODES:
        return f"MLX, {settings['mode']}"
    bits = choice(settings, "bits", BITS)
    return f"MLX, {bits} bits in groups of {settings['group_size']}"


def _matrix(module: str, tensors: Tensors, settings: Mapping[str, Any]) -> Matrix:
    mode = choice(settings, "mode", ("affine", *MODES), "affine")
    bits, group = choice(settings, "bits", BITS, 4), positive(settings, "group_size", 64)
    parts = ("weight", "scales") if mode in MODES else ("weight", "scales", "biases")
    for part in parts:
        if f"{module}.{part}" not in tensors.names:
            raise ValueError(f"the checkpoint has {module}.scales and no {module}.{part}")
    weight, scales, *biases = (tensors.names[f"{module}.{part}"] for part in parts)
    if len(scales.shape) != 2:
        raise ValueError(
            f"{module} holds {len(scales.shape)} axes of scales, several matrices in one tensor "
            "that are of no known use; take the model that it was made from"
        )
    columns = scales.shape[1] * group
    wanted = (scales.shape[0], columns * bits // 32)
    same = [one.shape == scales.shape for one in biases]
    if weight.dtype != "uint32" or weight.shape != wanted or not all(same):
        raise ValueError(
            f"{module}.weight is {weight.dtype} {list(weight.shape)} for scales "
            f"{list(scales.shape)} in groups of {group}; wanted uint32 {list(wanted)}"
        )
    if mode == "affine":
        read = partial(_read, module, tensors, bits, columns)
        return Matrix(scales.shape[0], columns, f"offset{bits}", group, read)
    floats = MODES[mode]
    if (bits, group, scales.dtype) != (floats.bits, floats.group, "uint8"):
        raise ValueError(
            f"{module} has mode={mode!r} with {bits} bits in groups of {group} and scales "
            f"{scales.dtype}; wanted {floats.bits} bits, {floats.group} and uint8"
        )
    read = partial(_read_floats, module, tensors, floats, columns)
    return Matrix(scales.shape[0], columns, floats.format, group, read)


def _read(module: str, tensors: Tensors, bits: int, columns: int) -> Parts:
    codes = unpack(tensors.read(f"{module}.weight"), bits, columns)
    scale, bias = (
        tensors.read(f"{module}.{part}").astype(np.float32) for part in ("scales", "biases")
    )
    return Parts(codes, scale, bias)


def _read_floats(module: str, tensors: Tensors, floats: Floats, columns: int) -> Parts:
    codes = unpack(tensors.read(f"{module}.weight"), floats.bits, columns)
    if floats.bits == 8:
        codes = codes.view(ml_dtypes.float8_e4m3fn)
    scale = tensors.read(f"{module}.scales")
    if not floats.exponents:
        scale = scale.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return Parts(codes, scale)
