"""Folders of MLX (mlx_lm.convert -q), whose config.json has `quantization`. A quantized linear
layer or table of O rows and I columns, in n groups, has

    NAME.weight   uint32 [O, I bits / 32], codes as one stream of bits
    NAME.scales   [O, n]
    NAME.biases   [O, n]

and stands for code * scale + bias ("affine"; the default of MLX's `quantize`).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from research.interop.quantized.matrix import Matrix, Opened, Parts
from research.interop.quantized.settings import choice, positive
from research.interop.quantized.words import unpack
from research.interop.storage.tensors import Tensors

BITS = (2, 3, 4, 5, 6, 8)


def is_mlx(settings: Any) -> bool:
    """True if a config.json's `quantization` is MLX's."""
    return isinstance(settings, dict) and {"group_size", "bits"} <= settings.keys()


def open_mlx(settings: Mapping[str, Any], tensors: Tensors) -> Opened:
    """The matrices of a folder with these settings as `quantization`. ValueError for other modes
    than affine, such as "mxfp4", and for matrices with misshapen companions."""
    matrices, beside = {}, set()
    for name in tensors.names:
        if not name.endswith(".scales"):
            continue
        module = name.removesuffix(".scales")
        # A module may have an entry of its own, with its own bits and groups.
        own = settings.get(module)
        matrices[f"{module}.weight"] = _matrix(
            module, tensors, {**settings, **(own if isinstance(own, dict) else {})}
        )
        beside |= {f"{module}.scales", f"{module}.biases"}
    bits = choice(settings, "bits", BITS)
    return Opened(f"MLX, {bits} bits in groups of {settings['group_size']}", matrices, beside, {})


def _matrix(module: str, tensors: Tensors, settings: Mapping[str, Any]) -> Matrix:
    choice(settings, "mode", ("affine",), "affine")
    bits, group = choice(settings, "bits", BITS), positive(settings, "group_size", 64)
    for part in ("weight", "biases"):
        if f"{module}.{part}" not in tensors.names:
            raise ValueError(f"the checkpoint has {module}.scales and no {module}.{part}")
    weight, scales, biases = (
        tensors.names[f"{module}.{part}"] for part in ("weight", "scales", "biases")
    )
    if len(scales.shape) != 2:
        raise ValueError(
            f"{module} holds {len(scales.shape)} axes of scales, the experts of a layer in one "
            "tensor; MLX folders of mixtures of experts are not supported, take the model that it "
            "was made from"
        )
    columns = scales.shape[1] * group
    wanted = (scales.shape[0], columns * bits // 32)
    if weight.dtype != "uint32" or weight.shape != wanted or biases.shape != scales.shape:
        raise ValueError(
            f"{module}.weight is {weight.dtype} {list(weight.shape)} for scales "
            f"{list(scales.shape)} in groups of {group}; wanted uint32 {list(wanted)}"
        )
    read = partial(_read, module, tensors, bits, columns)
    return Matrix(scales.shape[0], columns, f"offset{bits}", group, read)


def _read(module: str, tensors: Tensors, bits: int, columns: int) -> Parts:
    codes = unpack(tensors.read(f"{module}.weight"), bits, columns)
    scale, bias = (
        tensors.read(f"{module}.{part}").astype(np.float32) for part in ("scales", "biases")
    )
    return Parts(codes, scale, bias)
