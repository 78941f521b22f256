"""The file format of transformers with bitsandbytes: linear weights in 4 or 8 bits, each with
companion tensors.

    NAME              uint8 [n / 2, 1]: codes of the flat matrix [out, in], the first in high bits
    NAME.absmax       the scale of each block of values; uint8 if scales are quantized too, with
    NAME.nested_absmax, .nested_quant_map    the scales of the scales, and their map
    NAME.quant_map    the values of the codes
    NAME.quant_state.bitsandbytes__nf4       JSON: quant_type, blocksize, shape,
                      nested_blocksize, nested_offset
    NAME int8 [out, in], with MODULE.SCB [out], the largest value of each row

They become leaves without ever being dense; `read` returns a dense array where one is needed. A
linear layer that its class keeps as [in, out] (GPT-2's Conv1D) is stored as [out, in] here.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from research.interop.storage.tensors import Tensor, Tensors, as_dtype
from research.weights.dynamic_map import DYNAMIC_MAP
from research.weights.formats import FORMATS
from research.weights.scales import BLOCK, QuantizedScales

STATE = ".quant_state.bitsandbytes__"
_BESIDE = (".absmax", ".nested_absmax", ".quant_map", ".nested_quant_map")


@dataclass(frozen=True)
class Matrix:
    """A quantized matrix [rows, columns] = [out, in] in the file, in blocks of `block` values.

    `dtype` is the type that it had before; `offset` the mean of doubly quantized scales.
    """

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
    """The tensors of a folder. A quantized one appears under its own name, with the shape and type
    of the weight that its codes stand for; its companions are left out of `names`."""

    names: Mapping[str, Tensor]
    matrices: Mapping[str, Matrix]
    _tensors: Tensors
    _transposed: frozenset[str]

    def read(self, name: str) -> np.ndarray:
        """A whole tensor. A quantized one is dequantized to the type that it had, and transposed if
        its class keeps it as [in, out]."""
        # Norms, biases and modules that transformers left alone are plain tensors.
        matrix = self.matrices.get(name)
        if matrix is None:
            return self._tensors.read(name)
        values = FORMATS[matrix.format].book
        if values is None:
            dense = self.codes(matrix).astype(np.float32) * self.scales(matrix)[:, None]
        else:
            blocks = values[self.codes(matrix)] * self.scales(matrix)[:, None]
            # Blocks run through the flat matrix; what the last one has beyond it is padding.
            dense = blocks.reshape(-1)[: matrix.rows * matrix.columns].reshape(
                matrix.rows, matrix.columns
            )
        dense = dense.astype(as_dtype(matrix.dtype))
        return np.ascontiguousarray(dense.T) if name in self._transposed else dense

    def codes(self, matrix: Matrix) -> np.ndarray:
        """The codes of a matrix: int8 [out, in], or 4-bit codes [blocks, block], one in each uint8,
        with zeros behind the last row."""
        stored = self._tensors.read(matrix.name)
        if matrix.format == "int8":
            return stored
        # The storage type is a setting (bnb_4bit_quant_storage); the bytes are the same.
        packed = np.ascontiguousarray(stored).reshape(-1).view(np.uint8)
        # bitsandbytes packs neighbours, the first in the high half of a byte.
        codes = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)
        wanted = matrix.rows * matrix.columns
        if len(codes) != wanted + wanted % 2:
            raise ValueError(
                f"{matrix.name} has {len(codes)} codes, its quant_state says {matrix.rows} x "
                f"{matrix.columns}"
            )
        # The last block may be short in the file.
        return np.pad(codes[:wanted], (0, -wanted % matrix.block)).reshape(-1, matrix.block)

    def scales(self, matrix: Matrix) -> np.ndarray:
        """The scales, float32: [blocks] for 4 bits, [out] for 8 bits."""
        if matrix.format == "int8":
            # SCB is the largest magnitude of a row, which the code 127 stands for.
            return self._tensors.read(_module(matrix.name) + ".SCB").astype(
                np.float32
            ) / np.float32(127)
        absmax = self._tensors.read(matrix.name + ".absmax").reshape(-1)
        if not matrix.nested:
            return absmax.astype(np.float32)
        # scale = map[code] * absmax of its block + offset (arXiv:2305.14314, section 3).
        book, second = (
            self._tensors.read(matrix.name + part).reshape(-1)
            for part in (".nested_quant_map", ".nested_absmax")
        )
        return book[absmax] * np.repeat(second, matrix.nested)[: len(absmax)] + np.float32(
            matrix.offset
        )

    def has_our_scales(self, matrix: Matrix) -> bool:
        """True if the scales are quantized with the same map and block size as ours, so that they
        can be taken over unchanged."""
        return matrix.nested == BLOCK and np.array_equal(
            self._tensors.read(matrix.name + ".nested_quant_map"), DYNAMIC_MAP
        )

    def quantized_scales(self, matrix: Matrix) -> QuantizedScales:
        """Doubly quantized scales, unchanged from the file."""
        codes, second = (
            self._tensors.read(matrix.name + part).reshape(-1)
            for part in (".absmax", ".nested_absmax")
        )
        return QuantizedScales(codes, second, np.array([matrix.offset], np.float32))


def open_quantized(
    settings: Any, tensors: Tensors, transposed: Callable[[str], bool]
) -> QuantizedTensors:
    """The tensors of a folder whose config.json has `settings` as quantization_config.

    `transposed(name)` is True for weights that their class keeps as [in, out]. ValueError for
    another quantization method, and for matrices with missing or damaged companions.
    """
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    if method != "bitsandbytes":
        raise ValueError(
            f"config.json has quantization_config with quant_method={method!r}; only "
            "'bitsandbytes' is supported"
        )
    # `beside` has the names of all companions, which are no weights of their own.
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
            # LLM.int8: one scale for each row, so there is no block.
            matrices[weight] = Matrix(weight, *tensors.names[weight].shape, "int8", 0)
            # `weight_format` says how int8 is laid out in memory; row-major is the only one in
            # files.
            beside |= {name, name.removesuffix(".SCB") + ".weight_format"}
    # To all who read on the folder looks unquantized: shapes and types of dense weights.
    names = {}
    for name, tensor in tensors.names.items():
        matrix = matrices.get(name)
        if matrix is not None:
            shape = (
                (matrix.columns, matrix.rows) if transposed(name) else (matrix.rows, matrix.columns)
            )
            names[name] = Tensor(shape, matrix.dtype)
        elif name not in beside:
            names[name] = tensor
    return QuantizedTensors(
        names, matrices, tensors, frozenset(name for name in matrices if transposed(name))
    )


def _read_state(name: str, kind: str, tensors: Tensors) -> Matrix:
    """A 4-bit matrix as its quant_state describes it. ValueError if that is damaged or describes
    another format than ours."""
    try:
        # safetensors holds tensors only, so the JSON is stored as an array of its bytes.
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
    # Without double quantization the scales are floats and need no companions.
    wanted = [part for part in _BESIDE if nested or "nested" not in part]
    missing = [part for part in ("", *wanted) if name + part not in tensors.names]
    if missing:
        raise ValueError(
            f"the checkpoint has no tensor {name}{missing[0]}, which {name} needs; fetch it again"
        )
    # Odd blocks would cut a byte; sizes come from a file and must not be trusted.
    if block < 2 or block % 2 or min(matrix.rows, matrix.columns) < 1 or nested < 0:
        raise ValueError(
            f"{name} has the shape {rows} x {columns} in blocks of {block}; wanted positive even "
            "numbers"
        )
    if matrix.dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"{name} was of type {matrix.dtype!r}; wanted a float")
    # The codes mean what the file's own map says, which must be the format's.
    book = FORMATS[matrix.format].book if matrix.format in ("nf4", "fp4") else None
    if book is None or not np.array_equal(tensors.read(name + ".quant_map").reshape(-1), book):
        raise ValueError(
            f"{name} has quant_type={matrix.format!r} with its own values; nf4 and fp4 are "
            "supported"
        )
    return matrix


def _module(name: str) -> str:
    return name.removesuffix(".weight")
