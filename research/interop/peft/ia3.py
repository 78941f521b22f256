"""IA3 in peft's format: factors of a layer's inputs, or of its outputs including the bias."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from research import tree
from research.interop.peft.kinds import IA3
from research.interop.peft.tensors import Arrays, Found
from research.interop.storage.checkpoint import Checkpoint, specs_by_path, stacked_axes
from research.interop.storage.layout import BAR, fused, inverse, letter_sizes, rearrange
from research.interop.storage.modules import Module, arranged, check_known, suffixes
from research.interop.storage.parameter import Parameter
from research.models.config import ModelConfig
from research.weights.ia3 import Ia3Adapter


def read_ia3(
    found: Found, known: Mapping[str, Module], checkpoint: Checkpoint
) -> tuple[Checkpoint, tree.Tree]:
    """(checkpoint, adapters by path of our tree). peft multiplies a layer's whole output, bias
    included, and our factors multiply the weight alone; so the returned checkpoint has its biases
    multiplied.

    ValueError for tensors of another shape, and for a weight that is multiplied on its inputs in
    some layers and on its outputs in others.
    """
    c, specs = checkpoint.config, specs_by_path(checkpoint.config)
    sizes, gains, parameters = letter_sizes(c), {}, dict(checkpoint.parameters)
    for name, parts in found.parts.items():
        module, gain = known[name], parts.get("ia3_l")
        if gain is None or gain.ndim != 2 or 1 not in gain.shape or module.embedding:
            raise ValueError(f"{name} has {', '.join(parts)}; wanted ia3_l [out, 1] or [1, in]")
        # [1, in] multiplies inputs, [out, 1] outputs; peft's config names the modules, but the
        # shape cannot contradict the tensor.
        on_inputs = gain.shape[0] == 1
        factors = arranged(
            gain.reshape(-1), module.inputs if on_inputs else module.outputs, sizes, name
        )
        for part, path in enumerate(module.paths):
            # A fused module has factors for each of its outputs, but its weights share the inputs.
            values = factors[part] if len(module.paths) > 1 and not on_inputs else factors
            stack = specs[path].shape[: stacked_axes(specs[path])]
            # Size 1 along the side that is not multiplied, as `Ia3Adapter.gain` has it.
            count = len(specs[path].shape) - len(stack) - values.ndim
            ones = (1,) * count
            first = on_inputs != module.table  # whether the factors' axes are the weight's first
            # Our factors broadcast against the weight: [1, K, H] on outputs of [D, K, H], [F, 1]
            # on inputs.
            full_gain = values.reshape((*values.shape, *ones) if first else (*ones, *values.shape))
            # Layers without an adapter keep factors of 1.
            adapter = gains.setdefault(
                path, Ia3Adapter(np.ones((*stack, *full_gain.shape), np.float32), on_inputs)
            )
            if adapter.on_inputs != on_inputs:
                side = "inputs" if on_inputs else "outputs"
                raise ValueError(
                    f"{name} is multiplied on its {side}, and in other layers it is not; adapt all "
                    "alike"
                )
            adapter.gain[module.index] = full_gain
    for path, adapter in gains.items():
        bias = f"{path}_bias"
        # l * (x W + b) = x (W l) + l b: the bias is scaled once, here.
        if not adapter.on_inputs and bias in parameters:
            parameters[bias] = _times(parameters[bias], adapter.gain)
    return replace(checkpoint, parameters=parameters), tree.unflatten(gains)


def _times(parameter: Parameter, gain: np.ndarray) -> Parameter:
    def read(index: tuple[int, ...]) -> np.ndarray:
        values = parameter.read(index)
        return values.astype(np.float32) * gain[index].reshape(values.shape)

    return replace(parameter, read=read)


def write_ia3(
    adapters: Mapping[str, Ia3Adapter], known: Mapping[str, Module], c: ModelConfig
) -> tuple[dict[str, Any], Arrays]:
    """(fields of adapter_config.json, tensors by name) of IA3's factors by path of our tree.

    ValueError for a path that is no matrix of the model, and where peft's factors would also
    multiply a bias or another weight's inputs, which ours do not.
    """
    arrays: Arrays = {}
    adapted, inward, sizes = set(), set(), letter_sizes(c)
    check_known(adapters, known)
    for name, module in known.items():
        # A fused module may have factors for some of its weights only; the others get ones.
        given = [adapters.get(path) for path in module.paths]
        if not any(given):
            continue
        on_inputs = next(one for one in given if one is not None).on_inputs
        _refuse_unequal(module, on_inputs)
        pattern = module.inputs if on_inputs else module.outputs
        shape = _axes_of(pattern, sizes, len(module.paths) > 1 and not on_inputs)
        factors = [
            np.ones(shape, np.float32)
            if one is None
            else np.asarray(one.gain, np.float32)[module.index].reshape(shape)
            for one in given
        ]
        # peft scales the layer's output, bias included; ours scales the weight alone.
        biased = not on_inputs and any(f"{path}_bias" in specs_by_path(c) for path in module.paths)
        if biased or (len(factors) > 1 and on_inputs):
            raise ValueError(
                f"peft's factors of {name} multiply "
                f"{'its bias' if biased else 'the inputs of all that it holds'} too; "
                "merge them into the weights instead"
            )
        flat = rearrange(fused(factors, pattern), inverse(pattern), sizes)
        arrays[f"{name}.ia3_l"] = flat[None] if on_inputs else flat[:, None]
        adapted.add(name)
        # peft takes the modules that scale their inputs from a list of its own.
        inward |= {name} if on_inputs else set()
    targets = [suffixes(group, known) for group in (adapted - inward, inward)]
    return {
        "peft_type": IA3,
        "target_modules": targets[0] + targets[1],
        "feedforward_modules": targets[1],
        "fan_in_fan_out": any(known[name].conv for name in adapted),
        "modules_to_save": None,
    }, arrays


def _refuse_unequal(module: Module, on_inputs: bool) -> None:
    if BAR in module.outputs and not on_inputs:
        raise ValueError(
            f"{module.name} joins weights of different sizes, for which factors are not written; "
            "merge them into the weights instead"
        )


def _axes_of(pattern: str, sizes: Mapping[str, int], several: bool) -> tuple[int, ...]:
    """Sizes of the axes on a pattern's right side, without the one over fused weights."""
    letters = pattern.split(" -> ")[1].split()[several:]
    return tuple(sizes[letter] for letter in letters)
