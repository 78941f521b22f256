"""GPTQ folders (arXiv:2210.17323) as AutoGPTQ, GPTQModel and Optimum write them. A linear layer of
I inputs and O outputs in n groups has

    NAME.qweight   int32 [I bits / 32, O], codes packed along the inputs
    NAME.qzeros    int32 [n, O bits / 32], zero points packed along the outputs; less 1 in the
                   checkpoint_format "gptq", as they are in "gptq_v2"
    NAME.scales    [n, O]
    NAME.g_idx     int32 [I], the group of each input; in act order no runs

and stands for (code - zero) * scale.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from research.interop.quantized.matrix import (
    Matrix,
    Opened,
    Parts,
    integer_format,
    integer_parts,
)
from research.interop.quantized.settings import choice, positive
from research.interop.quantized.words import unpack
from research.interop.storage.tensors import Tensors

PARTS = ("qweight", "qzeros", "scales", "g_idx")
BITS = (2, 3, 4, 8)


def open_gptq(settings: Mapping[str, Any], tensors: Tensors) -> Opened:
    """The matrices of a folder with these settings as quantization_config. ValueError for settings
    that are not known, and for matrices with missing or misshapen companions."""
    bits = choice(settings, "bits", BITS)
    choice(settings, "pack_dtype", ("int32",), "int32")
    version = choice(settings, "checkpoint_format", ("gptq", "gptq_v2"), "gptq")
    symmetric = settings.get("sym", True) is True
    matrices, beside = {}, set()
    for name in tensors.names:
        if not name.endswith(".qweight"):
            continue
        module = name.removesuffix(".qweight")
        matrices[f"{module}.weight"] = _matrix(
            module, tensors, bits, settings, version == "gptq", symmetric
        )
        beside |= {f"{module}.{part}" for part in PARTS}
    scattered = any(matrix.scattered for matrix in matrices.values())
    size = settings.get("group_size", -1)
    groups = f" in groups of {size}" if size != -1 else ""
    order = ", in act order" if scattered else ""
    return Opened(f"GPTQ, {bits} bits{groups}{order}", matrices, beside, {})


def _matrix(
    module: str,
    tensors: Tensors,
    bits: int,
    settings: Mapping[str, Any],
    less_one: bool,
    symmetric: bool,
) -> Matrix:
    for part in PARTS[:3]:
        if f"{module}.{part}" not in tensors.names:
            raise ValueError(f"the checkpoint has {module}.qweight and no {module}.{part}")
    words, outputs = tensors.names[f"{module}.qweight"].shape
    ordered = f"{module}.g_idx" in tensors.names
    if ordered:
        # Its length tells the inputs, and with them a layer's own number of bits.
        inputs = tensors.names[f"{module}.g_idx"].shape[0]
        bits = words * 32 // max(inputs, 1)
    else:
        inputs = words * 32 // bits
    count = tensors.names[f"{module}.scales"].shape[0]
    group = positive(settings, "group_size", inputs)
    # A layer may have groups of its own size (GPTQModel's `dynamic`).
    group = group if -(-inputs // group) == count else -(-inputs // count)
    if bits not in BITS or words * 32 != inputs * bits or outputs * bits % 32:
        raise ValueError(
            f"{module}.qweight is {words} x {outputs} words for {inputs} inputs; wanted codes of "
            f"{', '.join(map(str, BITS))} bits"
        )
    groups = tensors.read(f"{module}.g_idx").astype(np.int64) if ordered else None
    if groups is not None and np.array_equal(groups, np.arange(inputs) // group):
        groups = None
    if groups is not None and not ((groups >= 0) & (groups < count)).all():
        raise ValueError(f"{module}.g_idx names groups beyond the {count} that it has scales for")
    format = integer_format(bits, symmetric)
    read = partial(_read, module, tensors, (bits, inputs, format), groups, less_one)
    reason = "" if groups is None else "act order gives neighbouring inputs different scales"
    return Matrix(outputs, inputs, format, group, read, reason)


def _read(
    module: str,
    tensors: Tensors,
    form: tuple[int, int, str],
    groups: np.ndarray | None,
    less_one: bool,
) -> Parts:
    bits, inputs, format = form
    codes = unpack(tensors.read(f"{module}.qweight").T, bits, inputs)
    scale = tensors.read(f"{module}.scales").T
    zero = _zeros(tensors.read(f"{module}.qzeros"), bits, len(codes), less_one).T
    if format.startswith("int") and not (zero == 2 ** (bits - 1)).all():
        raise ValueError(
            f"{module}.qzeros has zero points other than {2 ** (bits - 1)}, and config.json says "
            '"sym": true; set "sym": false in its quantization_config'
        )
    return integer_parts(format, codes, scale, zero, groups)


def _zeros(words: np.ndarray, bits: int, count: int, less_one: bool) -> np.ndarray:
    """The zero points, uint8 [n, O]."""
    if not less_one:
        return unpack(words, bits, count)
    if 32 % bits:
        return (unpack(words, bits, count) + 1) & (2**bits - 1)
    # Whole words, as GPTQModel converts them: its writer borrowed from the next code, which the
    # carry pays back.
    ones = sum(1 << place for place in range(0, 32, bits))
    return unpack(words.view(np.uint32) + np.uint32(ones), bits, count)
