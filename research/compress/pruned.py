"""Pruning as a transform from parameter tree to parameter tree, chosen by path rules."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

from research import tree
from research.compress.calibration import Seen, by_layer
from research.compress.masks import Pruning
from research.compress.prune import PRUNERS, UNCALIBRATED, prune_matrix
from research.models.model import Batch, Model
from research.weights.lora import Lora
from research.weights.matrices import split_axes
from research.weights.rules import is_leaf
from research.weights.sparse import Sparse

Rules = Sequence[tuple[str, Pruning | None]]


def prune(
    model: Model,
    params: tree.Tree,
    rules: Rules,
    method: str,
    batches: Sequence[Batch] = (),
    group: int | None = None,
) -> tree.Tree:
    """The parameters with each matrix that a rule chooses as a `Sparse` leaf, pruned by a method of
    `PRUNERS`; None leaves a weight unchanged.

        prune(model, params, [(LINEAR, Pruning(pattern=(2, 4))), (".*", None)], "wanda", batches)

    Every method but magnitude needs `batches` and matrices of a decoder's layers, as
    `research.compress.calibration.calibrate` does: a layer is pruned with the states that pruned
    layers give. Magnitude takes tables and experts too, each layer and expert by itself. `group` is
    that of the formats. ValueError, naming the path, for a parameter that is no matrix or is a leaf
    already, for groups of a pattern that do not divide its inputs, and for a share that leaves an
    output nothing.
    """
    if method not in PRUNERS:
        raise ValueError(f"method={method!r}; choose one of {', '.join(PRUNERS)}")
    chosen = _chosen(model, params, rules)
    if method in UNCALIBRATED:
        leaves = tree.paths(params, is_leaf)
        for path, (pruning, spec) in chosen.items():
            one = partial(prune_matrix, method=method, pruning=pruning, group=group)
            leaves[path] = Sparse(_each(one, path, leaves[path], spec), pruning.pattern)
        return tree.unflatten(leaves)
    if not batches:
        raise ValueError(f"method={method!r} looks at the inputs of weights; give batches of text")

    def _change(layer: dict[str, Any], seen: Seen) -> dict[str, Any]:
        changed = dict(layer)
        for path, inputs in seen.items():
            pruning, spec = chosen[f"layers/{path}"]
            settings: dict[str, Any] = {"inputs": spec.inputs, "seen": inputs, "group": group}
            pruned = prune_matrix(layer[path], method, pruning, **settings)
            changed[path] = Sparse(pruned, pruning.pattern)
        return changed

    return by_layer(model, params, list(chosen), batches, _change)


def _chosen(model: Model, params: tree.Tree, rules: Rules) -> dict[str, tuple[Pruning, Any]]:
    """(pruning, spec) of each path that a rule prunes; the errors of `prune`."""
    specs, leaves = model.specs(), tree.paths(params, is_leaf)
    by_path, chosen = tree.paths(specs), {}
    choices = tree.choose(rules, specs)
    for path, pruning in tree.paths(choices, lambda node: not isinstance(node, dict)).items():
        if pruning is None:
            continue
        if not isinstance(leaves[path], jax.Array):
            kind = type(leaves[path]).__name__
            # Codes under an adapter, and codes alone, are the two that one meets.
            remedy = "merge the adapter" if kind == Lora.__name__ else "give the plain parameters"
            raise ValueError(f"{path} is a {kind} already; {remedy} first")
        of = 1
        for size, _ in split_axes(path, by_path[path])[1]:
            of *= size
        pruning.check(path, of)
        chosen[path] = pruning, by_path[path]
    return chosen


def _each(one: Callable[..., Any], path: str, w: jax.Array, spec: Any) -> Any:
    """`one` of each matrix of a stack of layers and experts; a table's inputs are turned to the
    front and back."""
    if spec.inputs < 0:
        pruned = one(w.T, inputs=1)
        if not isinstance(pruned, jax.Array):
            raise ValueError(f"{path} is a table, which is pruned without a format")
        return pruned.T
    stacked = len(split_axes(path, spec)[0])
    apply: Callable[[jax.Array], Any] = partial(one, inputs=spec.inputs)
    # `lax.map` takes one matrix after another: sorting all at once would hold all ranks.
    for _ in range(stacked):
        apply = partial(jax.lax.map, apply)
    return apply(w)
