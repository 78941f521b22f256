"""Post-training quantization with calibration texts, and what quantization costs, one layer of a
decoder at a time.

A layer is run over all batches with leaves that note their inputs, transformed, and run again: what
the next one is calibrated with has gone through quantized layers. No more than one layer's
activations and gram matrices exist at once.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from research import tree
from research.compress import awq, smooth_quant
from research.compress.gptq import gptq
from research.compress.observe import Inputs, Observed
from research.models.config import ModelConfig
from research.models.context import layer_kind
from research.models.model import Batch, Model
from research.models.stack import layer_of
from research.weights.quantized import quantize_array, stack
from research.weights.rules import Rules, is_leaf, quantize_specs

METHODS = ("gptq", "awq", "smoothquant")
Layer = Mapping[str, jax.Array]


def calibrate(
    model: Model,
    params: tree.Tree,
    rules: Rules,
    batches: Sequence[Batch],
    method: str,
    group: int | None = None,
) -> tree.Tree:
    """The parameters with the matrices of layers that the rules name quantized by a method of
    `METHODS`: the tree that `rules.quantize` makes, in which they are rounded to nearest.

    Batches have inputs, segments and positions [B, T], without padding. ValueError for what is no
    decoder, for rules over anything but single matrices of layers (experts have no inputs of their
    own to observe), and for groups that do not divide.
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
        layer = tree.unflatten(
            _transform(c, tree.paths(layer, is_leaf), seen, own, inputs, method, group)
        )
        states = [
            _run(layer, x_BTD, batch, kind, model=model) for batch, x_BTD in zip(batches, states)
        ]
        made.append(layer)
    return {**params, "layers": stack(made)}


def layer_errors(
    model: Model, params: tree.Tree, changed: Mapping[str, tree.Tree], batches: Sequence[Batch]
) -> dict[str, np.ndarray]:
    """How far each layer of each changed model is from what it should add to its input, relative,
    float64 [L].

    |changed(x) - layer(x)| / |layer(x) - x| over the states x that the unchanged layers give.
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
    """Ids [n] as batches of whole windows, up to so many rows each. ValueError where they do not
    fill one."""
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


def folds(c: ModelConfig) -> list[tuple[str, tuple[str, ...]]]:
    """(what makes the inputs, the weights that share them) where a norm can take the factor of an
    input."""
    made = (
        []
        if c.norm_after
        else [("attention_norm", ("attention/query", "attention/key", "attention/value"))]
    )
    if not c.norm_after and not c.experts:
        made.append(("mlp_norm", ("mlp/up", "mlp/gate") if c.gated else ("mlp/up",)))
    return made


def inner_folds(c: ModelConfig) -> list[tuple[str, tuple[str, ...]]]:
    """The same where a matrix makes the inputs and nothing but products lies between."""
    made = [("attention/value", ("attention/out",))] if c.heads == c.kv_heads else []
    return [*made, ("mlp/up", ("mlp/down",))] if c.gated and not c.experts else made


def _transform(c, layer: Layer, seen, formats, inputs, method, group) -> dict:
    """One layer quantized, by paths."""
    if method in ("smoothquant", "awq"):
        for before, after in folds(c) + (inner_folds(c) if method == "awq" else []):
            sharing = [path for path in after if path in formats]
            if len(sharing) < len(after):
                continue  # one that stays as it is would need the factor too
            weights = [smooth_quant.as_matrix(layer[path], inputs[path]) for path in sharing]
            if method == "awq":
                factors_I = awq.search(seen[sharing[0]], weights, formats[sharing[0]], group)
            else:
                factors_I = smooth_quant.smoothing(seen[sharing[0]].largest_I, weights)
            layer = smooth_quant.fold(
                layer, before, {path: inputs[path] for path in sharing}, factors_I
            )
            seen = _rescaled(seen, before, sharing, factors_I) if method == "awq" else seen
    made = dict(layer)
    for path, format in formats.items():
        if method == "gptq":
            made[path] = gptq(
                layer[path], seen[path].gram_II, format, inputs=inputs[path], group=group
            )
        else:
            made[path] = quantize_array(layer[path], format, inputs=inputs[path], group=group)
    return made


def _rescaled(
    seen: Mapping[str, Inputs], before: str, after: Sequence[str], factors_I: jax.Array
) -> dict[str, Inputs]:
    """What the weights would have seen after a fold."""
    made = dict(seen)
    for path in after:
        s = seen[path]
        gram_II = s.gram_II / factors_I[:, None] / factors_I[None]
        made[path] = Inputs(s.count, s.total_I / factors_I, s.largest_I / factors_I, gram_II)
    return made


def _check_decoder(model: Model) -> None:
    if model.config.kind != "decoder":
        raise ValueError(
            f"the model is an {model.config.kind}; calibration runs decoders alone; set --method=rtn"
        )


def _is_inputs(node: object) -> bool:
    return isinstance(node, Inputs)


def _square(x: jax.Array) -> float:
    return float(jnp.sum(jnp.square(x.astype(jnp.float32))))


@partial(jax.jit, static_argnames="model")
def _embed(params: tree.Tree, batch: Batch, *, model: Model) -> jax.Array:
    return model.states(params, batch)


@partial(jax.jit, static_argnames=("model", "kind"))
def _run(layer: tree.Tree, x_BTD: jax.Array, batch: Batch, kind: int, *, model: Model) -> jax.Array:
    return model.layer(layer, x_BTD, batch, kind)


@partial(jax.jit, static_argnames=("model", "kind", "paths"))
def _observe(
    layer: tree.Tree,
    x_BTD: jax.Array,
    batch: Batch,
    kind: int,
    *,
    model: Model,
    paths: tuple[str, ...],
):
    """What comes into the weights at these paths, by path."""
    leaves = tree.paths(layer, is_leaf)
    watched = {path: Observed(leaves[path]) for path in paths}
    model.layer(tree.unflatten({**leaves, **watched}), x_BTD, batch, kind)
    return {path: leaf.seen[0] for path, leaf in watched.items()}
