"""Adapters that are no leaf here (LoHa, LoKr, OFT, BOFT): their weights are changed as they are
read."""

import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from research.interop.peft.kinds import BOFT, LOHA, LOKR, OFT
from research.interop.peft.products import loha, lokr
from research.interop.peft.rotations import boft, oft
from research.interop.peft.tensors import Found
from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.layout import fused, inverse, letter_sizes, rearrange
from research.interop.storage.modules import Module, arranged
from research.interop.storage.parameter import Codes, Parameter

UPDATES = (LOHA, LOKR, OFT, BOFT)
Index = tuple[int, ...]


def with_updates(found: Found, known: Mapping[str, Module], checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the adapters' updates in its weights, computed in float32 when a weight
    is read. A weight that is quantized in storage is read dense then. ValueError for tensors that
    are not the kind's, or that do not fit."""
    sizes = letter_sizes(checkpoint.config)
    changed: dict[str, dict[Index, tuple[Module, int]]] = {}
    for name in found.parts:
        module = known[name]
        if module.embedding:
            raise ValueError(
                f"{name} is a table, on which {found.config.kind} is not supported; merge the "
                "adapter with peft"
            )
        for part, path in enumerate(module.paths):
            changed.setdefault(path, {})[module.index] = (module, part)
    parameters, codes = dict(checkpoint.parameters), dict(checkpoint.codes)
    for path, slices in changed.items():
        parameters[path] = _updated(path, slices, found, checkpoint, sizes)
        if path in codes:
            codes[path] = Codes(codes[path].forms | dict.fromkeys(slices), codes[path].read)
    logging.warning(
        "%s is no adapter that trains here: it is merged into the weights of %d modules as they "
        "are read",
        found.config.kind,
        len(found.parts),
    )
    return replace(checkpoint, parameters=parameters, codes=codes)


def _updated(
    path: str,
    slices: Mapping[Index, tuple[Module, int]],
    found: Found,
    checkpoint: Checkpoint,
    sizes: Mapping[str, int],
) -> Parameter:
    base = checkpoint.parameters[path]

    def _read(index: Index) -> np.ndarray:
        if index not in slices:
            return base.read(index)
        module, part = slices[index]
        ours = [checkpoint.parameters[one].read(index).astype(np.float32) for one in module.paths]
        theirs = rearrange(fused(ours, module.weight), inverse(module.weight), sizes)
        # GPT-2's class stores a weight as [in, out].
        new = _update(found, module.name, theirs.T if module.conv else theirs)
        back = arranged(new.T if module.conv else new, module.weight, sizes, module.name)
        return back[part] if len(module.paths) > 1 else back

    return replace(base, read=_read)


def _update(found: Found, name: str, w: np.ndarray) -> np.ndarray:
    """The weight [out, in] of a module with its update."""
    parts, config = found.parts[name], found.config
    try:
        if config.kind in (LOHA, LOKR):
            return (loha if config.kind == LOHA else lokr)(w, parts, float(found.scale(name)))
        return boft(w, parts) if config.kind == BOFT else oft(w, parts, config.rotation)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None
