"""Whole weights that an adapter has in place of the base's (`modules_to_save`, trained biases and
norms)."""

from dataclasses import replace

import numpy as np

from research.interop.peft.tensors import Found
from research.interop.storage.checkpoint import Checkpoint, specs_by_path, stacked_axes
from research.interop.storage.family import Family
from research.interop.storage.layout import letter_sizes, pieces
from research.interop.storage.modules import arranged
from research.interop.storage.parameter import Codes, Parameter
from research.models.spec import Spec

_HEAD = "lm_head"


def with_whole_weights(found: Found, checkpoint: Checkpoint, family: Family) -> Checkpoint:
    """The checkpoint with the adapter's whole weights in place of the base's."""
    c, sizes = checkpoint.config, letter_sizes(checkpoint.config)
    specs, unused = specs_by_path(c), dict(found.whole)
    slices: dict[str, dict[tuple[int, ...], np.ndarray]] = {}
    for piece in pieces(
        family.rules(c), {path: spec.shape[: stacked_axes(spec)] for path, spec in specs.items()}
    ):
        if piece.name in unused:
            values = arranged(
                found.tensors.read(unused.pop(piece.name)), piece.pattern, sizes, piece.name
            )
            for part, path in enumerate(piece.paths):
                slices.setdefault(path, {})[piece.index] = (
                    values[part] if len(piece.paths) > 1 else values
                )
    for name, actual in unused.items():
        # peft saves the tied head's base beside an adapted table; it repeats the table and is
        # skipped.
        if not c.tied or name != f"{_HEAD}.weight" or ".base_layer." not in actual:
            raise ValueError(
                f"the adapter has the tensor {actual!r}, which {checkpoint.source} has no place for"
            )
    parameters, codes = dict(checkpoint.parameters), dict(checkpoint.codes)
    for path, own in slices.items():
        parameters[path] = _replaced(parameters.get(path), own, specs[path])
        # A replaced slice is no longer the quantized one of the file.
        if path in codes:
            codes[path] = Codes({**codes[path].forms, **dict.fromkeys(own)}, codes[path].read)
    return replace(checkpoint, parameters=parameters, codes=codes)


def _replaced(
    base: Parameter | None, own: dict[tuple[int, ...], np.ndarray], spec: Spec
) -> Parameter:
    """The parameter with the slices of `own` in place of its own; `base` None if the model had no
    such parameter before."""

    def _read(index: tuple[int, ...]) -> np.ndarray:
        return own[index] if index in own or base is None else base.read(index)

    dtype = next(iter(own.values())).dtype if base is None else base.dtype
    return Parameter(spec.shape, str(dtype), stacked_axes(spec), _read)
