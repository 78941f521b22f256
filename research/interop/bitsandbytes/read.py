"""Reads bitsandbytes' matrices as quantized leaves for our tree, without making them dense."""

from collections.abc import Mapping
from dataclasses import dataclass

from research.interop.bitsandbytes.matrices import Matrix, QuantizedTensors
from research.interop.storage import codes
from research.interop.storage.layout import BAR, letter_sizes
from research.interop.storage.modules import Module
from research.interop.storage.parameter import Codes
from research.models.config import ModelConfig
from research.weights.flat import FlatQuantized
from research.weights.formats import FORMATS
from research.weights.packing import pack
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


def leaves_by_path(
    c: ModelConfig,
    known: Mapping[str, Module],
    tensors: QuantizedTensors,
    actual: Mapping[str, str],
) -> dict[str, Codes]:
    """The quantized parameters of a file, by path of our tree. Arguments as of
    `research.interop.storage.codes.codes_by_path`. ValueError for a matrix whose blocks run over
    weights of different sizes."""
    sizes = letter_sizes(c)

    def _form_of(module: Module, matrix: Matrix) -> Form:
        if BAR in module.b:
            raise ValueError(
                f"{module.name} joins weights of different sizes in one quantized matrix, which is "
                "not supported; give the unquantized model"
            )
        return _form(matrix, tensors, len(module.paths))

    def _read(module: Module, part: int, matrix: Matrix, form: Form) -> Quantized:
        return _leaf(tensors, matrix, module, part, sizes, form)

    return codes.codes_by_path(known, actual, tensors.matrices, _form_of, _read)


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
    found = tensors.codes(matrix)
    scale = tensors.quantized_scales(matrix) if form.double else tensors.scales(matrix)
    inputs, outputs = (
        codes.own_sizes(pattern, part, sizes, several)
        for pattern, several in ((module.inputs, False), (module.outputs, parts > 1))
    )
    after = 0 if module.table else len(outputs)
    values = matrix.rows * matrix.columns // parts
    if form.flat:
        # A weight may begin and end inside blocks that its neighbours share: take all blocks it
        # touches.
        first, last = part * values // form.block, -(-(part + 1) * values // form.block)
        leaf_scale = scale.part(first, last) if form.double else scale[first:last, None]
        start = part * values - first * form.block
        return FlatQuantized(
            pack(found[first:last], 4), leaf_scale, None, form.format, inputs, after, outputs, start
        )
    # [out, I / G, G]: blocks divide the rows, so each row begins a new one.
    found = pack(found.reshape(matrix.rows, -1, form.block), FORMATS[form.format].bits)
    found = codes.arrange(found, module, part, sizes)
    if form.double:
        # `_form` made sure that a weight begins where a block of scales does.
        first, last = part * values // form.block, (part + 1) * values // form.block
        leaf_scale = scale.part(first, last)
    else:
        leaf_scale = codes.arrange(scale.reshape(matrix.rows, -1, 1), module, part, sizes)
    return Quantized(found, leaf_scale, None, form.format, inputs, after)
