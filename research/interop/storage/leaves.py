"""The parameters of a checkpoint that is quantized in storage: its codes as leaves, the rest as
arrays.

Layers are stacked where they are all of one form. Where some are of another, 16-bit among those of
4 bits or with blocks of another size, no stack holds them: `layers` is a tuple of trees then, one a
layer, which `research.models.stack` runs unrolled, and adapters go on it layer by layer.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import tree
from research.interop.storage.checkpoint import Checkpoint, Parameter, place
from research.models.spec import Spec, abstract, shardings
from research.parallel.axes import AxisRules
from research.weights import rules
from research.weights.quantized import Quantized

Index = tuple[int, ...]
STACK = "layers/"


def restore_leaves(
    checkpoint: Checkpoint,
    specs: tree.Tree,
    dtype: np.dtype,
    mesh: jax.sharding.Mesh | None,
    axis_rules: AxisRules,
) -> tree.Tree:
    """All parameters of a model with these specs, those in `checkpoint.codes` as leaves of the form
    that they have there."""
    by_path = tree.paths(specs)
    mixed = {path for path, codes in checkpoint.codes.items() if len(set(codes.forms.values())) > 1}
    apart = {path[: path.index(STACK)] for path in mixed}
    found = {
        path: _leaf(checkpoint, path, spec, (), dtype, mesh, axis_rules)
        for path, spec in by_path.items()
        if _stack_of(path) not in apart
    }
    params = tree.unflatten(found)
    for stack in sorted(apart):
        own = {path: spec for path, spec in by_path.items() if _stack_of(path) == stack}
        count = next(iter(own.values())).shape[0]
        layers = tuple(
            tree.unflatten(
                {
                    path.removeprefix(stack + STACK): _leaf(
                        checkpoint, path, _one(spec), (layer,), dtype, mesh, axis_rules
                    )
                    for path, spec in own.items()
                }
            )
            for layer in range(count)
        )
        node = params
        for name in stack.split("/")[:-1]:
            node = node.setdefault(name, {})
        node["layers"] = layers
    return params


def attach_layers(params: tree.Tree, adapters: tree.Tree) -> tree.Tree:
    """`research.weights.rules.attach`, also where `layers` is a tuple: there each layer gets its
    part of the adapters."""
    if not isinstance(adapters, dict) or not isinstance(params, dict):
        return rules.attach(params, adapters)
    apart = {name for name, node in params.items() if isinstance(node, tuple)}
    inner = {name for name in adapters if name == "encoder" and name in params}
    whole = {name: node for name, node in adapters.items() if name not in apart | inner}
    made = {name: node for name, node in params.items() if name not in apart | inner}
    made = rules.attach(made, whole) if whole else made
    for name in apart | inner:
        node, own = params[name], adapters.get(name, {})
        if name in apart:
            cut = [jax.tree.map(lambda x: x[layer], own) for layer in range(len(node))]
            made[name] = tuple(rules.attach(layer, part) for layer, part in zip(node, cut))
        else:
            made[name] = attach_layers(node, own)
    return {**made, **{name: node for name, node in params.items() if name not in made}}


def _stack_of(path: str) -> str | None:
    """What stands in front of the layers that a parameter belongs to, None for one that is no
    layer's."""
    at = path.find(STACK)
    return path[:at] if at == 0 or path[at - 1 : at] == "/" else None


def _one(spec: Spec) -> Spec:
    return replace(spec, shape=spec.shape[1:], axes=spec.axes[1:])


def _leaf(
    checkpoint: Checkpoint,
    path: str,
    spec: Spec,
    prefix: Index,
    dtype: np.dtype,
    mesh: jax.sharding.Mesh | None,
    axis_rules: AxisRules,
) -> Any:
    """The parameter, or its layer `prefix`, which has this spec: a leaf where its slices are all of
    one form."""
    parameter, codes = checkpoint.parameters.get(path), checkpoint.codes.get(path)
    if parameter is None:
        raise ValueError(
            f"{checkpoint.source} has no {path}; it holds "
            f"{', '.join(list(checkpoint.parameters)[:5])}, ..."
        )
    stack = parameter.shape[len(prefix) : parameter.stack]
    indices = [(*prefix, *rest) for rest in np.ndindex(*stack)]
    forms = {codes.forms[index] for index in indices} if codes is not None else {None}
    if len(forms) > 1 or None in forms:
        rest = Parameter(
            spec.shape, parameter.dtype, len(stack), lambda index: parameter.read((*prefix, *index))
        )
        return place(rest, abstract(spec, dtype, mesh, axis_rules))
    made = _stacked([codes.read(index) for index in indices], stack)
    return (
        jax.tree.map(jnp.asarray, made)
        if mesh is None
        else jax.device_put(made, shardings(made.specs(spec), mesh, axis_rules))
    )


def _stacked(leaves: Sequence[Quantized], stack: tuple[int, ...]) -> Quantized:
    if not stack:
        return leaves[0]
    return jax.tree.map(lambda *xs: np.stack(xs).reshape(*stack, *xs[0].shape), *leaves)
