"""IA3 as peft stores it: factors of what goes into a layer or of what it gives, its bias
included."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from research import tree
from research.interop.peft.tensors import Found
from research.interop.storage.checkpoint import (
    Checkpoint,
    Parameter,
    specs_by_path,
    stacked_axes,
)
from research.interop.storage.layout import letter_sizes
from research.interop.storage.modules import Module, arranged
from research.weights.ia3 import Ia3Adapter


def read_ia3(
    found: Found, known: Mapping[str, Module], checkpoint: Checkpoint
) -> tuple[Checkpoint, tree.Tree]:
    """Factors, and the checkpoint with the biases that they multiply too: peft's factors act on
    what a layer gives."""
    c, specs = checkpoint.config, specs_by_path(checkpoint.config)
    sizes, gains, parameters = letter_sizes(c), {}, dict(checkpoint.parameters)
    for name, parts in found.parts.items():
        module, gain = known[name], parts.get("ia3_l")
        if gain is None or gain.ndim != 2 or 1 not in gain.shape or module.embedding:
            raise ValueError(f"{name} has {', '.join(parts)}; wanted ia3_l [out, 1] or [1, in]")
        on_inputs = gain.shape[0] == 1
        own = arranged(
            gain.reshape(-1), module.inputs if on_inputs else module.outputs, sizes, name
        )
        for part, path in enumerate(module.paths):
            values = own[part] if len(module.paths) > 1 and not on_inputs else own
            stack = specs[path].shape[: stacked_axes(specs[path])]
            count = len(specs[path].shape) - len(stack) - values.ndim
            ones = (1,) * count
            first = on_inputs != module.table  # whether the factors' axes are the weight's first
            full = values.reshape((*values.shape, *ones) if first else (*ones, *values.shape))
            held = gains.setdefault(
                path, Ia3Adapter(np.ones((*stack, *full.shape), np.float32), on_inputs)
            )
            if held.on_inputs != on_inputs:
                side = "inputs" if on_inputs else "outputs"
                raise ValueError(
                    f"{name} is multiplied on its {side}, and in other layers it is not; adapt all "
                    "alike"
                )
            held.gain[module.index] = full
    for path, adapter in gains.items():
        bias = f"{path}_bias"
        if not adapter.on_inputs and bias in parameters:
            parameters[bias] = _times(parameters[bias], adapter.gain)
    return replace(checkpoint, parameters=parameters), tree.unflatten(gains)


def _times(parameter: Parameter, gain: np.ndarray) -> Parameter:
    def read(index: tuple[int, ...]) -> np.ndarray:
        values = parameter.read(index)
        return values.astype(np.float32) * gain[index].reshape(values.shape)

    return replace(parameter, read=read)
