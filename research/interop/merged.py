"""A checkpoint with an adapter merged into its weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from research import tree
from research.interop.huggingface.folder import companions, tokenizer_folder
from research.interop.load import local_path, open_adapter
from research.interop.storage.checkpoint import Checkpoint, specs_by_path
from research.interop.storage.parameter import Parameter
from research.interop.storage.tensors import as_dtype
from research.models.spec import abstract
from research.weights.rules import attach, is_leaf, merge


def merge_adapter(checkpoint: Checkpoint, adapter: str | Path) -> Checkpoint:
    """The checkpoint with an adapter (a folder of peft's or the workdir of a run) merged into its
    weights, each in the type that it had. Only weights with a leaf of an adapter are in memory; a
    tokenizer in the adapter's folder, which may have learnt tokens, takes the place of the
    checkpoint's.

    ValueError as `research.interop.load.open_adapter`, and for adapters that are no change of a
    weight, such as prompts.
    """
    base, adapters = open_adapter(adapter, checkpoint)
    leaves, specs = tree.paths(adapters, is_leaf), specs_by_path(base.config)
    if unknown := sorted(leaves.keys() - specs.keys()):
        raise ValueError(
            f"{adapter} has {unknown[0]}, which is no change of a weight and cannot be merged; use "
            f"it as it is: --checkpoint={checkpoint.source} --adapter={adapter}"
        )
    # What the adapter brought itself may be wider than the weights that it replaces.
    parameters = {
        path: parameter if parameter is checkpoint.parameters.get(path) else _in_type(parameter)
        for path, parameter in base.parameters.items()
    }
    for path, leaf in leaves.items():
        # One weight at a time, and the sum in float32 whatever the type that it is stored in.
        wanted = tree.unflatten({path: abstract(specs[path], np.dtype(np.float32))})
        merged = merge(attach(base.restore(wanted), tree.unflatten({path: leaf})), np.float32)
        parameters[path] = _replaced(parameters[path], tree.paths(merged, is_leaf)[path])
    folder, files = local_path(adapter), dict(base.files)
    if tokenizer_folder(folder) is not None:
        files |= companions(folder)
        base = replace(base, tokenizer_folder=folder)
    # The source's own tensors are other ones now.
    return replace(base, parameters=parameters, files=files, original=None, codes={})


def _in_type(parameter: Parameter) -> Parameter:
    dtype = as_dtype(parameter.dtype)
    return replace(parameter, read=lambda index: parameter.read(index).astype(dtype))


def _replaced(parameter: Parameter, merged: Any) -> Parameter:
    leaf = merged if hasattr(merged, "__array__") else merged.dense()
    values = np.asarray(leaf).astype(as_dtype(parameter.dtype))
    return replace(parameter, read=values.__getitem__)
