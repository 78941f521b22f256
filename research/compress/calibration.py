"""Post-training quantization with calibration texts, and the error that quantization makes, one
layer of a decoder at a time.

A layer is run over all batches with leaves that note their inputs, quantized, and run again, so the
next layer is calibrated with states that quantized layers give. Only one layer's activations and
gram matrices exist at a time.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from research import tree
from research.compress.methods import METHODS, Request, quantize_layer
from research.compress.observe import Inputs, Observed
from research.models.context import layer_kind
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
    c, specs = model.config, model.specs()
    _check_decoder(model)
    quantize_specs(specs, rules, group)  # for its errors, which name the path
    formats = {
        p: f
        for p, f in tree.paths(tree.choose(rules, specs), is_leaf=lambda n: n is None).items()
        if f
    }
    by_path = tree.paths(specs)
    for path in formats:
        if not path.startswith("layers/") or "experts" in by_path[path].axes:
            raise ValueError(f"{path} is no single matrix of a layer; set --method=rtn")
    own = {path.removeprefix("layers/"): format for path, format in formats.items()}
    inputs = {path: by_path[f"layers/{path}"].inputs for path in own}
    states = [_embed(params, batch, model=model) for batch in batches]
    made = []
    for index in range(c.layers):
        layer, seen, kind = layer_of(params["layers"], index), None, layer_kind(c, index)
        for batch, x_BTD in zip(batches, states):
            new = _observe(layer, x_BTD, batch, kind, model=model, paths=tuple(own))
            seen = (
                new
                if seen is None
                else jax.tree.map(lambda a, b: a + b, seen, new, is_leaf=_is_inputs)
            )
        leaves = tree.paths(layer, is_leaf)
        layer = tree.unflatten(quantize_layer(c, leaves, seen, Request(own, inputs, group), method))
        states = [
            _run(layer, x_BTD, batch, kind, model=model) for batch, x_BTD in zip(batches, states)
        ]
        made.append(layer)
    return {**params, "layers": stack(made)}


def layer_errors(
    model: Model, params: tree.Tree, changed: Mapping[str, tree.Tree], batches: Sequence[Batch]
) -> dict[str, np.ndarray]:
    """The relative error of each layer of each changed model, float64 [L] by name.

    |changed(x) - layer(x)| / |layer(x) - x| over the states x that the unchanged layers give: the
    error of what the layer adds to its input.
    """
    _check_decoder(model)
    states = [_embed(params, batch, model=model) for batch in batches]
    squares = np.zeros((len(changed) + 1, model.config.layers))
    for index in range(model.config.layers):
        layer, *others = (layer_of(p["layers"], index) for p in (params, *changed.values()))
        kind = layer_kind(model.config, index)
        for at, (batch, x_BTD) in enumerate(zip(batches, states)):
            states[at] = _run(layer, x_BTD, batch, kind, model=model)
            squares[0, index] += _square(states[at] - x_BTD)
            for n, other in enumerate(others):
                squares[n + 1, index] += _square(
                    _run(other, x_BTD, batch, kind, model=model) - states[at]
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
    batches = [ids_NT[at : at + rows] for at in range(0, count, rows)]
    positions = np.arange(length, dtype=np.int32)
    return [
        {"inputs": b, "segments": np.ones_like(b), "positions": np.broadcast_to(positions, b.shape)}
        for b in batches
    ]


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
    watched = {path: Observed(leaves[path]) for path in paths}
    model.layer(tree.unflatten({**leaves, **watched}), x_BTD, batch, kind)
    return {path: leaf.seen[0] for path, leaf in watched.items()}
