"""Folders of MLX (mlx_lm.convert -q), whose config.json has `quantization`. A quantized linear
layer or table of O rows and I columns, in n groups, has

    NAME.weight   uint32 [O, I bits / 32], codes as one stream of bits
    NAME.scales   [O, n]
    NAME.biases   [O, n]

and stands for code * scale + bias ("affine"; the default of MLX's `quantize`). In the mode "mxfp4"
the codes are e2m1, the scales uint8 exponents (e8m0) of groups of 32, and there are no biases.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from research.interop.quantized.matrix import Matrix, Opened, Parts
from research.interop.quantized.settings import choice, positive
from research.interop.quantized.stacks import stack_of
from research.interop.quantized.words import unpack
from research.interop.storage.tensors import Tensors

BITS = (2, 3, 4, 5, 6, 8)
MXFP4 = "mxfp4"


def is_mlx(settings: Any) -> bool:
    """True if a config.json's `quantization` is MLX's."""
    return isinstance(settings, dict) and {"group_size", "bits"} <= settings.keys()


def open_mlx(settings: Mapping[str, Any], tensors: Tensors) -> Opened:
    """The matrices of a folder with these settings as `quantization`. ValueError for other modes
    than affine and mxfp4, such as "nvfp4", and for matrices with misshapen companions."""
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
    if settings.get("mode") == MXFP4:
        return "MLX, mxfp4"
    bits = choice(settings, "bits", BITS)
    return f"MLX, {bits} bits in groups of {settings['group_size']}"


def _matrix(module: str, tensors: Tensors, settings: Mapping[str, Any]) -> Matrix:
    mode = choice(settings, "mode", ("affine", MXFP4), "affine")
    bits, group = choice(settings, "bits", BITS, 4), positive(settings, "group_size", 64)
    parts = ("weight", "scales") if mode == MXFP4 else ("weight", "scales", "biases")
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
    if mode == MXFP4:
        if (bits, group, scales.dtype) != (4, 32, "uint8"):
            raise ValueError(
                f"{module} has mode={mode!r} with {bits} bits in groups of {group} and scales "
                f"{scales.dtype}; wanted 4 bits, 32 and uint8"
            )
        read = partial(_read_mxfp4, module, tensors, columns)
        return Matrix(scales.shape[0], columns, MXFP4, group, read)
    read = partial(_read, module, tensors, bits, columns)
    return Matrix(scales.shape[0], columns, f"offset{bits}", group, read)


def _read(module: str, tensors: Tensors, bits: int, columns: int) -> Parts:
    codes = unpack(tensors.read(f"{module}.weight"), bits, columns)
    scale, bias = (
        tensors.read(f"{module}.{part}").astype(np.float32) for part in ("scales", "biases")
    )
    return Parts(codes, scale, bias)


def _read_mxfp4(module: str, tensors: Tensors, columns: int) -> Parts:
    return Parts(
        unpack(tensors.read(f"{module}.weight"), 4, columns), tensors.read(f"{module}.scales")
    )
