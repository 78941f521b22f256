"""Reads bitsandbytes' matrices as quantized leaves for our tree, without making them dense."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from research.interop.bitsandbytes.matrices import Matrix, QuantizedTensors
from research.interop.storage.checkpoint import Codes
from research.interop.storage.layout import BAR, letter_sizes, rearrange
from research.interop.storage.modules import Module
from research.models.config import ModelConfig
from research.weights.flat import FlatQuantized
from research.weights.formats import FORMATS
from research.weights.quantized import Quantized
from research.weights.scales import BLOCK


@dataclass(frozen=True)
class Form:
    """How a matrix is stored. Slices of one parameter can be stacked if their forms are equal.

    format   name of the format, such as "nf4"
    block    values that share a scale
    flat     True if blocks run over the ends of rows, see `research.weights.flat`
    double   True if the scales are doubly quantized in the same way as ours
    """

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
    """The quantized parameters of a file, by path of our tree. `known` has the model's modules by
    name, `actual` the name in the file of each of their tensors."""
    # Forms come from quant_states and maps, so layers can be compared without reading codes.
    forms: dict[str, dict[tuple[int, ...], Form | None]] = {}
    places: dict[str, dict[tuple[int, ...], tuple[Module, int, Matrix]]] = {}
    for name, module in known.items():
        matrix = tensors.matrices.get(actual.get(f"{name}.weight", ""))
        for part, path in enumerate(module.paths):
            if matrix is not None and BAR in module.b:
                raise ValueError(
                    f"{name} joins weights of different sizes in one quantized matrix, which is "
                    "not supported; give the unquantized model"
                )
            form = None if matrix is None else _form(matrix, tensors, len(module.paths))
            forms.setdefault(path, {})[module.index] = form
            if matrix is not None:
                places.setdefault(path, {})[module.index] = (module, part, matrix)
    sizes = letter_sizes(c)

    def _reader(path: str) -> Callable[[tuple[int, ...]], Quantized]:
        def _read(index: tuple[int, ...]) -> Quantized:
            module, part, matrix = places[path][index]
            return _leaf(tensors, matrix, module, part, sizes, forms[path][index])

        return _read

    return {path: Codes(forms[path], _reader(path)) for path in places}


def _form(matrix: Matrix, tensors: QuantizedTensors, parts: int) -> Form:
    """The form of each of the `parts` weights that a matrix holds. They keep doubly quantized
    scales if the blocks of scales end where the weights do."""
    if matrix.format == "int8":
        return Form("int8", matrix.columns, False, False)
    # A fused matrix holds its weights one after the other along its rows.
    values = matrix.rows * matrix.columns // parts
    whole = parts == 1 or values % (matrix.block * BLOCK) == 0
    # bitsandbytes counts blocks through the whole flat matrix, whatever the length of a row.
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
    """One of the weights that a matrix holds, as a leaf of numpy arrays."""
    parts = len(module.paths)
    # A fused matrix is read once for each of its weights: its reader keeps nothing.
    codes = tensors.codes(matrix)
    scale = tensors.quantized_scales(matrix) if form.double else tensors.scales(matrix)
    inputs, outputs = _sizes(module.inputs, sizes, False), _sizes(module.outputs, sizes, parts > 1)
    after = 0 if module.table else len(outputs)
    values = matrix.rows * matrix.columns // parts
    if form.flat:
        # A weight may begin and end inside blocks that its neighbours share: take all blocks it
        # touches.
        first, last = part * values // form.block, -(-(part + 1) * values // form.block)
        leaf_scale = scale.part(first, last) if form.double else scale[first:last, None]
        start = part * values - first * form.block
        return FlatQuantized(
            _pack(codes[first:last]), leaf_scale, None, form.format, inputs, after, outputs, start
        )
    # [out, I / G, G]: blocks divide the rows, so each row begins a new one.
    codes = codes.reshape(matrix.rows, -1, form.block)
    codes = _ours(_pack(codes) if FORMATS[form.format].bits == 4 else codes, module, part, sizes)
    if form.double:
        # `_form` made sure that a weight begins where a block of scales does.
        first, last = part * values // form.block, (part + 1) * values // form.block
        leaf_scale = scale.part(first, last)
    else:
        leaf_scale = _ours(scale.reshape(matrix.rows, -1, 1), module, part, sizes)
    return Quantized(codes, leaf_scale, None, form.format, inputs, after)


def _ours(x: np.ndarray, module: Module, part: int, sizes: Mapping[str, int]) -> np.ndarray:
    """Codes or scales [out, groups, ...] in a leaf's axis order: outputs behind the groups, but in
    front of them for a table."""
    left, right = module.outputs.split(" -> ")
    letters, several = right.split(), len(module.paths) > 1
    lead, own = letters[:several], letters[several:]
    order = [*lead, *own, "g", "j"] if module.table else [*lead, "g", "j", *own]
    # g numbers groups, j the codes in a group; neither is a letter of the model.
    moved = rearrange(
        x, f"{left} g j -> {' '.join(order)}", {**sizes, "g": x.shape[1], "j": x.shape[2]}
    )
    return np.ascontiguousarray(moved[part] if several else moved)


def _pack(codes: np.ndarray) -> np.ndarray:
    """Codes [..., G] packed as `research.weights.formats.pack` does, [..., G / 2]: code j shares a
    byte with code j + G / 2."""
    # numpy on the host, as files are read; the packed layout itself is that of the leaves.
    half = codes.shape[-1] // 2
    return codes[..., :half] | codes[..., half:] << 4


def _sizes(pattern: str, sizes: Mapping[str, int], several: bool) -> tuple[int, ...]:
    return tuple(sizes[letter] for letter in pattern.split(" -> ")[1].split()[several:])
