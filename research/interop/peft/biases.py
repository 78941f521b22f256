"""LoRA's biases (`lora_bias`): y = x W + s ((x A) B + b) is a bias of the layer itself."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from research.interop.peft.tensors import Found
from research.interop.storage.checkpoint import Checkpoint, specs_by_path, stacked_axes
from research.interop.storage.layout import letter_sizes
from research.interop.storage.modules import Module, arranged
from research.interop.storage.parameter import Parameter
from research.models.config import ModelConfig

KEY = "lora_B.bias"
Index = tuple[int, ...]


def with_biases(found: Found, known: Mapping[str, Module], checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the adapters' biases, times their scales, added to its layers'. A model
    without biases gets them, zero where there is no adapter. ValueError for a layer that can have
    none."""
    added: dict[str, dict[Index, np.ndarray]] = {}
    for name, parts in found.parts.items():
        if KEY not in parts:
            continue
        module, bias = known[name], found.scale(name) * parts[KEY]
        values = arranged(bias, module.outputs, letter_sizes(checkpoint.config), name)
        for part, path in enumerate(module.paths):
            own = values[part] if len(module.paths) > 1 else values
            added.setdefault(f"{path}_bias", {})[module.index] = own
    if not added:
        return checkpoint
    checkpoint = _widened(checkpoint, added)
    parameters = dict(checkpoint.parameters)
    for path, slices in added.items():
        parameters[path] = _plus(parameters[path], slices)
    return replace(checkpoint, parameters=parameters)


def _widened(checkpoint: Checkpoint, paths: Iterable[str]) -> Checkpoint:
    """The checkpoint with biases of these paths, those that are new zero."""
    c, parameters = _config_with(checkpoint.config, paths), dict(checkpoint.parameters)
    for path, spec in specs_by_path(c).items():
        if path not in parameters:
            # Stored as what it is added to: its weight.
            dtype = parameters[path.removesuffix("_bias")].dtype
            zeros = np.zeros(spec.shape, np.float32)
            parameters[path] = Parameter(spec.shape, dtype, stacked_axes(spec), zeros.__getitem__)
    return replace(checkpoint, config=c, parameters=parameters)


def _config_with(c: ModelConfig, paths: Iterable[str]) -> ModelConfig:
    missing = set(paths) - specs_by_path(c).keys()
    names = {path.rpartition("/")[2] for path in missing}
    if names & {"up_bias", "gate_bias", "down_bias"} and not c.experts:
        c = replace(c, mlp_bias=True)
    if names & {"query_bias", "key_bias", "value_bias", "out_bias"}:
        c = replace(c, attention_bias="all" if "out_bias" in names else "qkv")
    if missing := sorted(missing - specs_by_path(c).keys()):
        raise ValueError(
            f"the adapter has {missing[0]}, and this model has no place for such a bias; train it "
            "with lora_bias=False"
        )
    return c


def _plus(parameter: Parameter, slices: Mapping[Index, np.ndarray]) -> Parameter:
    def _read(index: Index) -> np.ndarray:
        values = parameter.read(index)
        return values.astype(np.float32) + slices[index] if index in slices else values

    return replace(parameter, read=_read)
