"""Folders of compressed-tensors, which llm-compressor and vLLM's users make. A linear layer is

    pack-quantized      NAME.weight_packed   int32 [O, I bits / 32], codes plus 2^bits / 2
                        NAME.weight_scale    [O, n]; NAME.weight_shape, int64 [2]
                        NAME.weight_zero_point   int32 [O bits / 32, n], packed along the outputs
                        NAME.weight_g_idx    [I], the group of each input; -1 for runs
    int-, float-, naive-quantized
                        NAME.weight          int8 or float8 [O, I]
                        NAME.weight_scale    [1], [O, 1], [O, n], or of blocks [O / R, I / C]
                        NAME.weight_zero_point   int8, shaped as the scale

    nvfp4-pack-quantized
                        NAME.weight_packed   uint8 [O, I / 2], two e2m1 codes a byte
                        NAME.weight_scale    float8 e4m3 [O, I / 16]
                        NAME.weight_global_scale   float32 [1], by which the scales are divided
    mxfp4-pack-quantized
                        the same without the last, and with exponents uint8 [O, I / 32]

and stands for (code - zero) * scale. `config_groups` says which layers have which bits.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from research.interop.quantized.floats import open_scaled, read_block, unused_scales
from research.interop.quantized.matrix import (
    Matrix,
    Opened,
    Parts,
    integer_format,
    integer_parts,
)
from research.interop.quantized.settings import choice
from research.interop.quantized.words import unpack
from research.interop.storage.tensors import Tensors

FORMATS = (
    *("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "dense"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized"),
)
_PACKED = ("packed", "scale", "shape", "zero_point", "g_idx", "global_scale")


def open_compressed(settings: Mapping[str, Any], tensors: Tensors) -> Opened:
    """The matrices of a folder with these settings as quantization_config. ValueError for formats
    that are not supported, such as sparse ones, and for damaged matrices."""
    choice(settings, "format", (*FORMATS, "mixed-precision"), "dense")
    for group in _groups(settings):
        choice(group, "format", FORMATS, "dense")
    _refuse_further(settings)
    matrices = open_scaled(_without_packed(tensors), partial(_block, settings))
    for name in tensors.names:
        if name.endswith(".weight_packed"):
            module = name.removesuffix(".weight_packed")
            matrices[f"{module}.weight"] = _matrix(module, tensors, settings)
    modules = {name.removesuffix(".weight") for name in matrices}
    beside = {f"{module}.weight_{part}" for module in modules for part in _PACKED}
    kinds = sorted({_describe(matrix) for matrix in matrices.values()})
    return Opened(
        f"compressed-tensors, {' and '.join(kinds)}", matrices, beside, unused_scales(tensors)
    )


def _describe(matrix: Matrix) -> str:
    whole = matrix.group == matrix.columns
    return matrix.format + ("" if whole else f" in groups of {matrix.group}")


def _refuse_further(settings: Mapping[str, Any]) -> None:
    """ValueError for what changes the computation beside the weights."""
    sparsity = settings.get("sparsity_config") or {}
    if sparsity.get("format", "dense") != "dense":
        raise ValueError(
            f"quantization_config has sparsity_config with format={sparsity['format']!r}; wanted "
            "'dense'. Take the unquantized model"
        )
    if (settings.get("transform_config") or {}).get("config_groups"):
        raise ValueError(
            "quantization_config has a transform_config, whose rotations of activations are not "
            "computed here; take the unquantized model"
        )


def _without_packed(tensors: Tensors) -> Tensors:
    """The tensors without those of packed matrices."""
    packed = [n.removesuffix("packed") for n in tensors.names if n.endswith(".weight_packed")]
    hidden = {start + part for start in packed for part in _PACKED}
    names = {name: one for name, one in tensors.names.items() if name not in hidden}
    return _Some(names, tensors)


class _Some:
    """Some tensors of others."""

    def __init__(self, names: Mapping[str, Any], tensors: Tensors):
        self.names, self.read = names, tensors.read


def _groups(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(one, dict) for one in groups.values()):
        raise ValueError("quantization_config has no config_groups; fetch config.json again")
    return list(groups.values())


def _weights(settings: Mapping[str, Any], module: str) -> Mapping[str, Any]:
    """How the weights of a module are quantized: as the group says that names it, else as the group
    does that names its class."""
    by_class: Mapping[str, Any] = {}
    for group in _groups(settings):
        for target in group.get("targets") or ():
            named = target.startswith("re:") and re.match(target[3:], module)
            if named or target == module:
                return group.get("weights") or {}
            if re.fullmatch(r"\w*(Linear|Embedding|Conv1D)\w*", target):
                by_class = by_class or group.get("weights") or {}
    return by_class


def _block(settings: Mapping[str, Any], module: str) -> tuple[int, int] | None:
    return read_block(_weights(settings, module).get("block_structure"))


def _matrix(module: str, tensors: Tensors, settings: Mapping[str, Any]) -> Matrix:
    if tensors.names[f"{module}.weight_packed"].dtype == "uint8":
        return _floats(module, tensors)
    weights = _weights(settings, module)
    bits = choice(weights, "num_bits", range(2, 9))
    if bits == 7:
        raise ValueError(f"{module} has codes of 7 bits; take the unquantized model")
    for part in ("scale", "shape"):
        if f"{module}.weight_{part}" not in tensors.names:
            raise ValueError(f"the checkpoint has {module}.weight_packed and no weight_{part}")
    rows, columns = (int(n) for n in tensors.read(f"{module}.weight_shape").reshape(-1))
    packed = tensors.names[f"{module}.weight_packed"].shape
    scale = tensors.names[f"{module}.weight_scale"].shape
    # Older releases left the bits behind the last whole code of a word empty.
    if packed != (rows, -(-columns * bits // 32)) or len(scale) != 2 or scale[0] not in (1, rows):
        raise ValueError(
            f"{module}.weight_packed is {list(packed)} with scales {list(scale)} for a weight "
            f"[{rows}, {columns}] of {bits} bits; wanted [O, I bits / 32] and [O, n]"
        )
    group = columns if scale[1] == 1 else int(weights.get("group_size") or columns // scale[1])
    if -(-columns // max(group, 1)) != scale[1]:
        raise ValueError(f"{module} has {scale[1]} scales a row for groups of {group}")
    zero = f"{module}.weight_zero_point" in tensors.names
    groups = _scattered(tensors, f"{module}.weight_g_idx", group)
    form = (bits, rows, columns, integer_format(bits, signed=not zero))
    reason = "" if groups is None else "act order gives neighbouring inputs different scales"
    read = partial(_read, module, tensors, form, zero, groups)
    return Matrix(rows, columns, form[3], group, read, reason)


def _floats(module: str, tensors: Tensors) -> Matrix:
    """A matrix of e2m1 codes. ValueError for scales that are missing or do not fit them."""
    rows, half = tensors.names[f"{module}.weight_packed"].shape
    scale = tensors.names.get(f"{module}.weight_scale")
    known = scale is not None and scale.dtype in ("uint8", "float8_e4m3fn")
    if not known or len(scale.shape) != 2 or scale.shape[0] != rows or 2 * half % scale.shape[1]:
        raise ValueError(
            f"{module}.weight_packed is uint8 {[rows, half]} beside scales {scale}; wanted float8 "
            "e4m3 or exponents uint8 [O, n]"
        )
    read = partial(_read_floats, module, tensors)
    return Matrix(rows, 2 * half, "mxfp4", 2 * half // scale.shape[1], read)


def _read_floats(module: str, tensors: Tensors) -> Parts:
    packed, scale = (tensors.read(f"{module}.weight_{part}") for part in ("packed", "scale"))
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
    if scale.dtype != np.uint8:
        scale = scale.astype(np.float32)
        if (name := f"{module}.weight_global_scale") in tensors.names:
            scale = scale / tensors.read(name).astype(np.float32).reshape(())
    return Parts(codes, scale)


def _scattered(tensors: Tensors, name: str, group: int) -> np.ndarray | None:
    """The group of each input where they are no runs, else None."""
    if name not in tensors.names:
        return None
    groups = tensors.read(name).astype(np.int64)
    runs = groups.min() < 0 or np.array_equal(groups, np.arange(len(groups)) // group)
    return None if runs else groups


def _read(
    module: str,
    tensors: Tensors,
    form: tuple[int, int, int, str],
    zero: bool,
    groups: np.ndarray | None,
) -> Parts:
    bits, rows, columns, format = form
    codes = unpack(tensors.read(f"{module}.weight_packed"), bits, columns)
    scale = tensors.read(f"{module}.weight_scale")
    scale = np.broadcast_to(scale, (rows, scale.shape[1]))
    zeros = _zeros(tensors.read(f"{module}.weight_zero_point"), bits, rows) if zero else None
    return integer_parts(format, codes, scale, 2 ** (bits - 1) if zeros is None else zeros, groups)


def _zeros(values: np.ndarray, bits: int, rows: int) -> np.ndarray:
    """Zero points as unsigned as the codes are, [O, n]."""
    if values.dtype == np.int32:
        return unpack(values.T, bits, rows).T
    # Releases that did not pack them keep them signed.
    return values.astype(np.int16) + 2 ** (bits - 1)
