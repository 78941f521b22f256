"""Quantized matrices of a file as the stored codes of our parameters, whatever the format."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from research.interop.storage.layout import BAR, parse, rearrange, shape
from research.interop.storage.modules import Module
from research.interop.storage.parameter import Codes

Stored = TypeVar("Stored")
Index = tuple[int, ...]


def codes_by_path(
    known: Mapping[str, Module],
    actual: Mapping[str, str],
    matrices: Mapping[str, Stored],
    form: Callable[[Module, Stored], Any],
    leaf: Callable[[Module, int, Stored, Any], Any],
) -> dict[str, Codes]:
    """The quantized parameters of a file, by path of our tree. `known` has the model's modules by
    name, `actual` the name in the file of each of their tensors, `matrices` the quantized ones.

    `form(module, matrix)` says how a matrix is stored, equal where slices can be stacked, None
    where it can only be read dense; `leaf(module, part, matrix, form)` reads one of its weights.
    """
    forms: dict[str, dict[Index, Any]] = {}
    places: dict[str, dict[Index, tuple[Module, int, Stored]]] = {}
    for name, module in known.items():
        matrix = matrices.get(actual.get(f"{name}.weight", ""))
        # Forms come from settings and shapes, so layers are compared without reading codes.
        found = None if matrix is None else form(module, matrix)
        for part, path in enumerate(module.paths):
            forms.setdefault(path, {})[module.index] = found
            if matrix is not None and found is not None:
                places.setdefault(path, {})[module.index] = (module, part, matrix)

    def _reader(path: str) -> Callable[[Index], Any]:
        def _read(index: Index) -> Any:
            return leaf(*places[path][index], forms[path][index])

        return _read

    return {path: Codes(forms[path], _reader(path)) for path in places}


def arrange(x: np.ndarray, module: Module, part: int, sizes: Mapping[str, int]) -> np.ndarray:
    """Codes or scales [out, groups, ...] of one of a matrix's weights in a leaf's axis order:
    outputs behind the groups, but in front of them for a table."""
    pattern, several = module.outputs, len(module.paths) > 1
    if BAR in pattern:
        # Weights of different sizes one below the other.
        patterns = pattern.split(BAR)
        rows = [shape(parse(one)[0], sizes)[0] for one in patterns]
        begin = sum(rows[:part])
        x, pattern, several = x[begin : begin + rows[part]], patterns[part], False
    left, right = pattern.split(" -> ")
    letters = right.split()
    lead, own = letters[:several], letters[several:]
    order = [*lead, *own, "g", "j"] if module.table else [*lead, "g", "j", *own]
    # g numbers groups, j the codes in a group; neither is a letter of the model.
    moved = rearrange(
        x, f"{left} g j -> {' '.join(order)}", {**sizes, "g": x.shape[1], "j": x.shape[2]}
    )
    return np.ascontiguousarray(moved[part] if several else moved)


def own_sizes(pattern: str, part: int, sizes: Mapping[str, int], several: bool) -> tuple[int, ...]:
    """Sizes of our axes of one of a module's weights, by `Module.inputs` or `Module.outputs`;
    `several` if the pattern begins with an axis over them."""
    patterns = pattern.split(BAR)
    one = patterns[part] if len(patterns) > 1 else pattern
    letters = one.split(" -> ")[1].split()[several:]
    return tuple(int(letter) if letter.isdigit() else sizes[letter] for letter in letters)
