"""Post-training quantization and pruning with calibration texts, and the error that they make, one
layer of a decoder at a time.

A layer is run over all batches with leaves that note their inputs, changed, and run again, so the
next layer is calibrated with states that changed layers give. Only one layer's activations and
gram matrices exist at a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import tree
from research.compress.methods import METHODS, Request, Seen, quantize_layer
from research.compress.observe import Inputs, Observed
from research.models.config import dense_config
from research.models.kinds import layer_kind
from research.models.model import Batch, Model
from research.models.stack import layer_of
from research.weights.quantized import stack
from research.weights.rules import Rules, is_leaf, quantize_specs


def calibrate(
    model: Model,
    params: tree.Tree,
    rules: Rules,
    batches: Sequence[Batch],
    method: str,
    group: int | None = None,
) -> tree.Tree:
    """The parameters with matrices of layers quantized by a method of `METHODS`: the tree that
    `research.weights.rules.quantize` makes with these rules by rounding to the nearest.

    Batches have inputs, segments and positions [B, T], without padding. ValueError for what is no
    decoder, for rules over anything but single matrices of layers (experts have no inputs of their
    own to observe), and for groups that do not divide the inputs.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}; choose one of {', '.join(METHODS)}")
    specs = model.specs()
    quantize_specs(specs, rules, group)  # for its errors, which name the path
    formats = _formats(specs, rules)
    by_path = tree.paths(specs)
    # Paths without "layers/": a layer is run and quantized by itself.
    layer_formats = dict(zip(_layer_paths(specs, list(formats)), formats.values()))
    inputs = {path: by_path[f"layers/{path}"].inputs for path in layer_formats}
    request = Request(layer_formats, inputs, group)

    def _change(layer: dict[str, Any], seen: Seen) -> dict[str, Any]:
        return quantize_layer(model.config, layer, seen, request, method)

    return by_layer(model, params, list(formats), batches, _change)


def by_layer(
    model: Model,
    params: tree.Tree,
    paths: Sequence[str],
    batches: Sequence[Batch],
    change: Callable[[dict[str, Any], Seen], dict[str, Any]],
) -> tree.Tree:
    """The parameters with every layer changed by `change(leaves of a layer by path, the `Inputs` of
    those at `paths` by path)`, both without "layers/", from the first layer to the last.

    A layer sees the states that the changed layers before it give. ValueErrors as `calibrate` has
    them for the model and the paths.
    """
    c = model.config
    _check_decoder(model)
    if c.dense_layers:
        raise ValueError(
            f"model.dense_layers={c.dense_layers} are no layers like those behind them, of which "
            "all are calibrated alike; take a method without calibration: --method=rtn of "
            "research.quantize, or magnitude of research.compress"
        )
    observed_paths = tuple(_layer_paths(model.specs(), paths))
    states = [_embed(params, batch, model=model) for batch in batches]
    changed_layers = []
    for index in range(c.layers):
        layer, seen, kind = layer_of(params["layers"], index), None, layer_kind(c, index)
        for batch, x_BTD in zip(batches, states):
            # Statistics are sums, so those of all batches add up.
            observed = _observe(layer, x_BTD, batch, kind, model=model, paths=observed_paths)
            seen = (
                observed
                if seen is None
                else jax.tree.map(lambda a, b: a + b, seen, observed, is_leaf=_is_inputs)
            )
        layer = tree.unflatten(change(tree.paths(layer, is_leaf), seen))
        # The layer runs a second time: the next one is calibrated on what changed layers give.
        states = [
            _run(layer, x_BTD, batch, kind, model=model) for batch, x_BTD in zip(batches, states)
        ]
        changed_layers.append(layer)
    return {**params, "layers": stack(changed_layers)}


def walk(
    model: Model, params: tree.Tree, batches: Sequence[Batch]
) -> Iterator[tuple[int, tree.Tree, list[jax.Array], list[jax.Array]]]:
    """(number, parameters, states [B, T, D] before, states after) of each layer, the states by
    batch. One layer's states exist at a time. ValueError for what is no decoder."""
    _check_decoder(model)
    states = [_embed(params, batch, model=model) for batch in batches]
    for index in range(model.config.layers):
        of, layer_in = _one_stack(model, index)
        layer, kind = layer_in(params), layer_kind(model.config, index)
        after = [_run(layer, x_BTD, batch, kind, model=of) for batch, x_BTD in zip(batches, states)]
        yield index, layer, states, after
        states = after


def layer_errors(
    model: Model, params: tree.Tree, changed: Mapping[str, tree.Tree], batches: Sequence[Batch]
) -> dict[str, np.ndarray]:
    """The relative error of each layer of each changed model, float64 [L] by name.

    |changed(x) - layer(x)| / |layer(x) - x| over the states x that the unchanged layers give: the
    error of what the layer adds to its input.
    """
    _check_decoder(model)
    states = [_embed(params, batch, model=model) for batch in batches]
    # Row 0 is the sum of squares of what the unchanged layers add, the others of each model's
    # error.
    squares = np.zeros((len(changed) + 1, model.config.layers))
    for index in range(model.config.layers):
        # One layer of each model at a time, so that memory does not grow with depth.
        of, layer_in = _one_stack(model, index)
        layer, *others = (layer_in(p) for p in (params, *changed.values()))
        kind = layer_kind(model.config, index)
        for batch_index, (batch, x_BTD) in enumerate(zip(batches, states)):
            states[batch_index] = _run(layer, x_BTD, batch, kind, model=of)
            # A residual layer's error is measured against what it adds, not against the stream it
            # adds to.
            squares[0, index] += _square(states[batch_index] - x_BTD)
            for n, other in enumerate(others):
                squares[n + 1, index] += _square(
                    _run(other, x_BTD, batch, kind, model=of) - states[batch_index]
                )
    return {name: np.sqrt(row / squares[0]) for name, row in zip(changed, squares[1:])}


def windows(ids: np.ndarray, length: int, rows: int) -> list[Batch]:
    """Ids [n] cut into windows of `length`, as batches of up to `rows` windows; the last ids that
    fill no window are left out. ValueError where none is filled."""
    count = len(ids) // length
    if not count:
        raise ValueError(
            f"{len(ids)} tokens do not fill a window of {length}; give more text or shorter windows"
        )
    ids_NT = np.asarray(ids[: count * length], np.int32).reshape(count, length)
    batches = [ids_NT[first : first + rows] for first in range(0, count, rows)]
    # Every window is a text of its own, which begins at position 0.
    positions = np.arange(length, dtype=np.int32)
    return [
        {"inputs": b, "segments": np.ones_like(b), "positions": np.broadcast_to(positions, b.shape)}
        for b in batches
    ]


def _formats(specs: tree.Tree, rules: Rules) -> dict[str, str]:
    """The formats that rules choose, by path."""
    choices = tree.paths(tree.choose(rules, specs), is_leaf=lambda node: node is None)
    return {path: format for path, format in choices.items() if format}


def _layer_paths(specs: tree.Tree, paths: Sequence[str]) -> list[str]:
    """The paths in one layer, which is what runs alone. ValueError for any other path."""
    by_path = tree.paths(specs)
    # Experts see different tokens of one product, and tables are read by rows: neither has inputs
    # that are observed here.
    for path in paths:
        if not path.startswith("layers/") or "experts" in by_path[path].axes:
            raise ValueError(
                f"{path} is no single matrix of a layer, so its inputs are not observed; take "
                "--method=rtn of research.quantize, or magnitude of research.compress"
            )
    return [path.removeprefix("layers/") for path in paths]


def _one_stack(model: Model, index: int) -> tuple[Model, Callable[[tree.Tree], tree.Tree]]:
    """What runs layer `index`, and what takes it of a model's parameters. First layers without
    experts are a stack of their own."""
    first = model.config.dense_layers
    if index < first:
        dense = replace(model, config=dense_config(model.config))
        return dense, lambda params: layer_of(params["dense"]["layers"], index)
    return model, lambda params: layer_of(params["layers"], index - first)


def _check_decoder(model: Model) -> None:
    if model.config.kind != "decoder":
        raise ValueError(
            f"the model is an {model.config.kind}; calibration runs decoders alone; set "
            "--method=rtn"
        )


def _is_inputs(node: object) -> bool:
    return isinstance(node, Inputs)


def _square(x: jax.Array) -> float:
    return float(jnp.sum(jnp.square(x.astype(jnp.float32))))


@partial(jax.jit, static_argnames="model")
def _embed(params: tree.Tree, batch: Batch, *, model: Model) -> jax.Array:
    return model.states(params, batch)


@partial(jax.jit, static_argnames=("model", "kind"))
def _run(layer: tree.Tree, x_BTD: jax.Array, batch: Batch, kind: str, *, model: Model) -> jax.Array:
    return model.layer(layer, x_BTD, batch, kind)


@partial(jax.jit, static_argnames=("model", "kind", "paths"))
def _observe(
    layer: tree.Tree,
    x_BTD: jax.Array,
    batch: Batch,
    kind: str,
    *,
    model: Model,
    paths: tuple[str, ...],
):
    """What comes into the weights at these paths, by path."""
    leaves = tree.paths(layer, is_leaf)
    # The leaves are wrapped inside the traced function, run, and read again before it returns.
    watched = {path: Observed(leaves[path]) for path in paths}
    model.layer(tree.unflatten({**leaves, **watched}), x_BTD, batch, kind)
    return {path: leaf.seen[0] for path, leaf in watched.items()}
