"""Folders that transformers wrote with bitsandbytes: linear weights in 4 or in 8 bits, each with
tensors beside it.

    NAME              uint8 [n / 2, 1]: codes of the flat matrix [out, in], the first in high bits
    NAME.absmax       of each block of values; uint8 where the scales are quantized too, with
    NAME.nested_absmax, .nested_quant_map    their own scales and their map
    NAME.quant_map    the values of the codes
    NAME.quant_state.bitsandbytes__nf4       JSON: quant_type, blocksize, shape,
                      nested_blocksize, nested_offset
    NAME int8 [out, in], with MODULE.SCB [out], the largest value of each row

They become leaves without ever being dense; `read` gives a dense one, for what wants arrays. A
linear layer that its class keeps [in, out] lies as [out, in] here.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from research.interop.storage.foreign import as_dtype
from research.interop.storage.tensors import Tensor, Tensors
from research.weights.dynamic_map import DYNAMIC_MAP
from research.weights.formats import FORMATS
from research.weights.scales import BLOCK, QuantizedScales

STATE = ".quant_state.bitsandbytes__"
_BESIDE = (".absmax", ".nested_absmax", ".quant_map", ".nested_quant_map")


@dataclass(frozen=True)
class Matrix:
    """A quantized matrix in the file. `dtype` is the type that it had; `offset` the mean of doubly
    quantized scales."""

    name: str
    rows: int
    columns: int
    format: str
    block: int
    dtype: str = "float32"
    nested: int = 0  # scales that share a second scale; 0: they are floats
    offset: float = 0.0


@dataclass(frozen=True)
class QuantizedTensors:
    """The tensors of a folder, each quantized one under its own name with the shape that it stands
    for."""

    names: Mapping[str, Tensor]
    matrices: Mapping[str, Matrix]
    _tensors: Tensors
    _turned: frozenset[str]

    def read(self, name: str) -> np.ndarray:
        """A whole tensor; a quantized one in the type that it had, turned where its class keeps it
        so."""
        matrix = self.matrices.get(name)
        if matrix is None:
            return self._tensors.read(name)
        values = FORMATS[matrix.format].book
        if values is None:
            dense = self.codes(matrix).astype(np.float32) * self.scales(matrix)[:, None]
        else:
            blocks = values[self.codes(matrix)] * self.scales(matrix)[:, None]
            dense = blocks.reshape(-1)[: matrix.rows * matrix.columns].reshape(
                matrix.rows, matrix.columns
            )
        dense = dense.astype(as_dtype(matrix.dtype))
        return np.ascontiguousarray(dense.T) if name in self._turned else dense

    def codes(self, matrix: Matrix) -> np.ndarray:
        """int8 [out, in], or those of 4 bits one a byte, [blocks, block], the last block filled
        up."""
        stored = self._tensors.read(matrix.name)
        if matrix.format == "int8":
            return stored
        packed = np.ascontiguousarray(stored).reshape(-1).view(np.uint8)
        codes = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)
        wanted = matrix.rows * matrix.columns
        if len(codes) != wanted + wanted % 2:
            raise ValueError(
                f"{matrix.name} has {len(codes)} codes, its quant_state says {matrix.rows} x "
                f"{matrix.columns}"
            )
        return np.pad(codes[:wanted], (0, -wanted % matrix.block)).reshape(-1, matrix.block)

    def scales(self, matrix: Matrix) -> np.ndarray:
        """Float32 [blocks], of 8 bits [out]."""
        if matrix.format == "int8":
            return self._tensors.read(_module(matrix.name) + ".SCB").astype(
                np.float32
            ) / np.float32(127)
        absmax = self._tensors.read(matrix.name + ".absmax").reshape(-1)
        if not matrix.nested:
            return absmax.astype(np.float32)
        book, second = (
            self._tensors.read(matrix.name + part).reshape(-1)
            for part in (".nested_quant_map", ".nested_absmax")
        )
        return book[absmax] * np.repeat(second, matrix.nested)[: len(absmax)] + np.float32(
            matrix.offset
        )

    def has_our_scales(self, matrix: Matrix) -> bool:
        """Whether scales are quantized by the map and in the blocks that ours are."""
        return matrix.nested == BLOCK and np.array_equal(
            self._tensors.read(matrix.name + ".nested_quant_map"), DYNAMIC_MAP
        )

    def quantized_scales(self, matrix: Matrix) -> QuantizedScales:
        """Doubly quantized scales as they are."""
        codes, second = (
            self._tensors.read(matrix.name + part).reshape(-1)
            for part in (".absmax", ".nested_absmax")
        )
        return QuantizedScales(codes, second, np.array([matrix.offset], np.float32))


def open_quantized(
    settings: Any, tensors: Tensors, turned: Callable[[str], bool]
) -> QuantizedTensors:
    """The tensors of a folder whose config.json has `settings` as quantization_config. `turned`
    says of a name whether its class keeps it [in, out]. ValueError for what bitsandbytes did not
    write, and what it did not write whole."""
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    if method != "bitsandbytes":
        raise ValueError(
            f"config.json has quantization_config with quant_method={method!r}; only "
            "'bitsandbytes' is supported"
        )
    matrices, beside = {}, set()
    for name in tensors.names:
        if STATE in name:
            weight, _, kind = name.partition(STATE)
            matrices[weight] = _read_state(weight, kind, tensors)
            beside |= {name, *(weight + part for part in _BESIDE)}
        elif name.endswith(".SCB"):
            weight = name.removesuffix(".SCB") + ".weight"
            if weight not in tensors.names or len(tensors.names[weight].shape) != 2:
                raise ValueError(f"the checkpoint has {name} and no matrix {weight}")
            matrices[weight] = Matrix(weight, *tensors.names[weight].shape, "int8", 0)
            beside |= {name, name.removesuffix(".SCB") + ".weight_format"}
    names = {}
    for name, tensor in tensors.names.items():
        matrix = matrices.get(name)
        if matrix is not None:
            shape = (matrix.columns, matrix.rows) if turned(name) else (matrix.rows, matrix.columns)
            names[name] = Tensor(shape, matrix.dtype)
        elif name not in beside:
            names[name] = tensor
    return QuantizedTensors(
        names, matrices, tensors, frozenset(name for name in matrices if turned(name))
    )


def _read_state(name: str, kind: str, tensors: Tensors) -> Matrix:
    """A 4-bit matrix by its quant_state. ValueError where that says what we do not compute."""
    try:
        state = json.loads(tensors.read(f"{name}{STATE}{kind}").tobytes())
        rows, columns = state["shape"]
        block, nested = int(state["blocksize"]), int(state.get("nested_blocksize", 0))
        offset = float(state.get("nested_offset", 0))
        matrix = Matrix(
            name,
            int(rows),
            int(columns),
            state["quant_type"],
            block,
            str(state["dtype"]),
            nested,
            offset,
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{name} has a damaged quant_state ({error!r}); fetch the checkpoint again"
        ) from None
    wanted = [part for part in _BESIDE if nested or "nested" not in part]
    missing = [part for part in ("", *wanted) if name + part not in tensors.names]
    if missing:
        raise ValueError(
            f"the checkpoint has no tensor {name}{missing[0]}, which {name} needs; fetch it again"
        )
    if block < 2 or block % 2 or min(matrix.rows, matrix.columns) < 1 or nested < 0:
        raise ValueError(
            f"{name} has the shape {rows} x {columns} in blocks of {block}; wanted positive even "
            "numbers"
        )
    if matrix.dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"{name} was of type {matrix.dtype!r}; wanted a float")
    book = FORMATS[matrix.format].book if matrix.format in ("nf4", "fp4") else None
    if book is None or not np.array_equal(tensors.read(name + ".quant_map").reshape(-1), book):
        raise ValueError(
            f"{name} has quant_type={matrix.format!r} with its own values; nf4 and fp4 are "
            "supported"
        )
    return matrix


def _module(name: str) -> str:
    return name.removesuffix(".weight")
