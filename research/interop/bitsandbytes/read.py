"""bitsandbytes' matrices as leaves for our tree, which are never dense on the way."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from research.interop.bitsandbytes.matrices import Matrix, QuantizedTensors
from research.interop.storage.checkpoint import Codes
from research.interop.storage.layout import letter_sizes, rearrange
from research.interop.storage.modules import Module
from research.models.config import ModelConfig
from research.weights.flat import FlatQuantized
from research.weights.formats import FORMATS
from research.weights.quantized import Quantized
from research.weights.scales import BLOCK


@dataclass(frozen=True)
class Form:
    """How a matrix is held: its format, the values of a block, whether the block runs over rows'
    ends, and whether its scales are quantized as ours are."""

    format: str
    block: int
    flat: bool
    double: bool


def codes_by_path(
    c: ModelConfig,
    known: Mapping[str, Module],
    tensors: QuantizedTensors,
    actual: Mapping[str, str],
) -> dict[str, Codes]:
    """What the file holds quantized, by path of our tree. `known` are the model's modules, and
    `actual` their tensors' names in the file by their own."""
    forms: dict[str, dict[tuple[int, ...], Form | None]] = {}
    places: dict[str, dict[tuple[int, ...], tuple[Module, int, Matrix]]] = {}
    for name, module in known.items():
        matrix = tensors.matrices.get(actual.get(f"{name}.weight", ""))
        for part, path in enumerate(module.paths):
            form = None if matrix is None else _form(matrix, tensors, len(module.paths))
            forms.setdefault(path, {})[module.index] = form
            if matrix is not None:
                places.setdefault(path, {})[module.index] = (module, part, matrix)
    sizes = letter_sizes(c)

    def reader(path: str) -> Callable[[tuple[int, ...]], Quantized]:
        def read(index: tuple[int, ...]) -> Quantized:
            module, part, matrix = places[path][index]
            return _leaf(tensors, matrix, module, part, sizes, forms[path][index])

        return read

    return {path: Codes(forms[path], reader(path)) for path in places}


def _form(matrix: Matrix, tensors: QuantizedTensors, parts: int) -> Form:
    """Of the parts of a matrix that several weights share, which keep doubly quantized scales where
    blocks end with them."""
    if matrix.format == "int8":
        return Form("int8", matrix.columns, False, False)
    values = matrix.rows * matrix.columns // parts
    whole = parts == 1 or values % (matrix.block * BLOCK) == 0
    flat = matrix.columns % matrix.block > 0
    return Form(matrix.format, matrix.block, flat, whole and tensors.has_our_scales(matrix))


def _leaf(
    tensors: QuantizedTensors,
    matrix: Matrix,
    module: Module,
    part: int,
    sizes: Mapping[str, int],
    form: Form,
) -> Quantized:
    """One part of a matrix as a leaf of numpy arrays."""
    parts = len(module.paths)
    codes = tensors.codes(matrix)
    scale = tensors.quantized_scales(matrix) if form.double else tensors.scales(matrix)
    inputs, outputs = _sizes(module.inputs, sizes, False), _sizes(module.outputs, sizes, parts > 1)
    after = 0 if module.table else len(outputs)
    values = matrix.rows * matrix.columns // parts
    if form.flat:
        first, last = part * values // form.block, -(-(part + 1) * values // form.block)
        own = scale.part(first, last) if form.double else scale[first:last, None]
        start = part * values - first * form.block
        return FlatQuantized(
            _pack(codes[first:last]), own, None, form.format, inputs, after, outputs, start
        )
    codes = codes.reshape(matrix.rows, -1, form.block)
    codes = _ours(_pack(codes) if FORMATS[form.format].bits == 4 else codes, module, part, sizes)
    if form.double:
        own = scale.part(part * values // form.block, (part + 1) * values // form.block)
    else:
        own = _ours(scale.reshape(matrix.rows, -1, 1), module, part, sizes)
    return Quantized(codes, own, None, form.format, inputs, after)


def _ours(x: np.ndarray, module: Module, part: int, sizes: Mapping[str, int]) -> np.ndarray:
    """[out, groups, ...] as a leaf has it: behind the groups of a matrix, in front of those of a
    table."""
    left, right = module.outputs.split(" -> ")
    letters, several = right.split(), len(module.paths) > 1
    lead, own = letters[:several], letters[several:]
    order = [*lead, *own, "g", "j"] if module.table else [*lead, "g", "j", *own]
    moved = rearrange(
        x, f"{left} g j -> {' '.join(order)}", {**sizes, "g": x.shape[1], "j": x.shape[2]}
    )
    return np.ascontiguousarray(moved[part] if several else moved)


def _pack(codes: np.ndarray) -> np.ndarray:
    """Codes [..., G] as `research.weights.formats.pack` packs them, [..., G / 2]."""
    half = codes.shape[-1] // 2
    return codes[..., :half] | codes[..., half:] << 4


def _sizes(pattern: str, sizes: Mapping[str, int], several: bool) -> tuple[int, ...]:
    return tuple(sizes[letter] for letter in pattern.split(" -> ")[1].split()[several:])
