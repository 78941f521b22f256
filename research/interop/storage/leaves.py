"""Loads a checkpoint that is quantized in storage: its codes become leaves, the rest arrays.

Layers are stacked if they all have one form. If they differ (some in 16 bits among others in 4, or
blocks of another size), they cannot be stacked: `layers` is then a tuple with a tree for each
layer. `research.models.stack` runs it unrolled, and adapters are attached layer by layer.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import tree
from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.parameter import Parameter
from research.interop.storage.place import place
from research.models.spec import Spec, abstract, shardings
from research.parallel.axes import AxisRules
from research.weights import rules
from research.weights.quantized import Quantized

Index = tuple[int, ...]
# The start of the paths of a stack of layers, at the top or under `encoder/` or `dense/`.
STACK = "layers/"


def restore_leaves(
    checkpoint: Checkpoint,
    specs: tree.Tree,
    dtype: np.dtype,
    mesh: jax.sharding.Mesh | None,
    axis_rules: AxisRules,
) -> tree.Tree:
    """All parameters of a model with these specs; those in `checkpoint.codes` are leaves in their
    stored form, the others arrays of type `dtype`. ValueError for a missing parameter."""
    by_path = tree.paths(specs)
    # One mixed parameter splits its whole stack: a layer's parameters must be sliced alike.
    mixed = {path for path, codes in checkpoint.codes.items() if len(set(codes.forms.values())) > 1}
    apart = {path[: path.index(STACK)] for path in mixed}
    # What all layers store alike stays stacked, so that the model scans over it and compiles one
    # layer.
    params_by_path = {
        path: _leaf(checkpoint, path, spec, (), dtype, mesh, axis_rules)
        for path, spec in by_path.items()
        if _stack_of(path) not in apart
    }
    params = tree.unflatten(params_by_path)
    for stack in sorted(apart):
        # One tree for each layer, also of the parameters that are not quantized (norms, biases).
        layer_specs = {path: spec for path, spec in by_path.items() if _stack_of(path) == stack}
        count = next(iter(layer_specs.values())).shape[0]
        layers = tuple(
            tree.unflatten(
                {
                    path.removeprefix(stack + STACK): _leaf(
                        checkpoint, path, _one(spec), (layer,), dtype, mesh, axis_rules
                    )
                    for path, spec in layer_specs.items()
                }
            )
            for layer in range(count)
        )
        # The tuple goes where the stack would have been: under `encoder` or at the top.
        node = params
        for name in stack.split("/")[:-1]:
            node = node.setdefault(name, {})
        node["layers"] = layers
    return params


def attach_layers(params: tree.Tree, adapters: tree.Tree) -> tree.Tree:
    """`research.weights.rules.attach` that also takes trees whose `layers` is a tuple: each layer
    then gets its slice of the stacked adapters."""
    if not isinstance(adapters, dict) or not isinstance(params, dict):
        return rules.attach(params, adapters)
    apart = {name for name, node in params.items() if isinstance(node, tuple)}
    # An encoder-decoder has a stack of its own under `encoder`, first layers without experts theirs
    # under `dense`.
    inner = {name for name in adapters if name in ("encoder", "dense") and name in params}
    whole = {name: node for name, node in adapters.items() if name not in apart | inner}
    attached = {name: node for name, node in params.items() if name not in apart | inner}
    attached = rules.attach(attached, whole) if whole else attached
    for name in apart | inner:
        node, inside = params[name], adapters.get(name, {})
        if name in apart:
            # Adapters are stacked whatever the weights are, since all layers' adapters have one
            # form.
            cut = [jax.tree.map(lambda x: x[layer], inside) for layer in range(len(node))]
            attached[name] = tuple(rules.attach(layer, part) for layer, part in zip(node, cut))
        else:
            attached[name] = attach_layers(node, inside)
    return {**attached, **{name: node for name, node in params.items() if name not in attached}}


def _stack_of(path: str) -> str | None:
    """The path in front of `layers/` ("", "encoder/" or "dense/"), None for parameters outside
    layers."""
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
    """The parameter (or its layer `prefix`), which has this spec: a leaf if all its slices have one
    quantized form, else an array."""
    parameter, codes = checkpoint.parameters.get(path), checkpoint.codes.get(path)
    if parameter is None:
        raise ValueError(
            f"{checkpoint.source} has no {path}; it holds "
            f"{', '.join(list(checkpoint.parameters)[:5])}, ..."
        )
    # Axes that are still stacked here: [L], [L, E], or [E] where `prefix` has chosen the layer.
    stack = parameter.shape[len(prefix) : parameter.stack]
    indices = [(*prefix, *rest) for rest in np.ndindex(*stack)]
    forms = {codes.forms[index] for index in indices} if codes is not None else {None}
    if len(forms) > 1 or None in forms:
        # Read dense, in the run's type: layers of mixed forms have no common leaf.
        rest = Parameter(
            spec.shape, parameter.dtype, len(stack), lambda index: parameter.read((*prefix, *index))
        )
        return place(rest, abstract(spec, dtype, mesh, axis_rules))
    # The codes of the whole stack are on the host at once, which is less than any dense layer
    # stack.
    leaf = _stacked([codes.read(index) for index in indices], stack)
    return (
        jax.tree.map(jnp.asarray, leaf)
        if mesh is None
        else jax.device_put(leaf, shardings(leaf.specs(spec), mesh, axis_rules))
    )


def _stacked(leaves: Sequence[Quantized], stack: tuple[int, ...]) -> Quantized:
    if not stack:
        return leaves[0]
    return jax.tree.map(lambda *xs: np.stack(xs).reshape(*stack, *xs[0].shape), *leaves)
