"""How one layer is quantized with what was observed of its inputs: a method is one row of
`METHODS`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax

from research.compress import awq, smooth_quant
from research.compress.gptq import gptq
from research.compress.observe import Inputs
from research.models.config import ModelConfig
from research.weights.quantized import Quantized, quantize_array

Layer = Mapping[str, jax.Array]
Seen = Mapping[str, Inputs]


@dataclass(frozen=True)
class Request:
    """What to quantize: by path in a layer the formats of matrices and how many of their axes are
    inputs, and `group` as in `research.weights.quantized.quantize_array`."""

    formats: Mapping[str, str]
    inputs: Mapping[str, int]
    group: int | None


def quantize_layer(
    c: ModelConfig, layer: Layer, seen: Seen, request: Request, method: str
) -> dict[str, jax.Array | Quantized]:
    """A layer, by paths, with the requested matrices quantized by a method of `METHODS`; `seen` are
    their inputs."""
    return METHODS[method](c, layer, seen, request)


def folds(c: ModelConfig) -> list[tuple[str, tuple[str, ...]]]:
    """Pairs (norm, the weights that read its result) where the norm's scale can absorb a factor of
    each input: its result goes into these weights alone."""
    pairs, before = [], c.norm_before and not c.norm_after
    # Without `first_norm` there is a layer whose attention reads no norm.
    if before and c.first_norm:
        pairs.append(("attention_norm", ("attention/query", "attention/key", "attention/value")))
    # A norm behind the layer's output feeds the residual stream, which other layers read too;
    # experts' inputs also feed the router.
    if before and not c.experts:
        pairs.append(("mlp_norm", ("mlp/up", "mlp/gate") if c.gated else ("mlp/up",)))
    return pairs


def inner_folds(c: ModelConfig) -> list[tuple[str, tuple[str, ...]]]:
    """Pairs (matrix, the weights that read its result) with nothing but products between the two,
    so that the matrix's columns can absorb a factor of each input."""
    pairs = []
    # Attention mixes tokens and not columns: a value's column reaches `out` unchanged.
    if c.heads == c.kv_heads:  # else a value's column is an input of several heads
        pairs.append(("attention/value", ("attention/out",)))
    if c.gated and not c.experts:
        pairs.append(("mlp/up", ("mlp/down",)))
    return pairs


def _by_gptq(c: ModelConfig, layer: Layer, seen: Seen, request: Request) -> dict:
    # The layer that came in stays as it is: the caller still holds it.
    changed = dict(layer)
    for path, format in request.formats.items():
        gram_II, inputs = seen[path].gram_II, request.inputs[path]
        changed[path] = gptq(layer[path], gram_II, format, inputs=inputs, group=request.group)
    return changed


def _by_awq(c: ModelConfig, layer: Layer, seen: Seen, request: Request) -> dict:
    # In the order of the layer's computation.
    for before, after in _foldable(folds(c) + inner_folds(c), request):
        # Weights that share their input also share its factors, so they are searched together.
        weights = _matrices(layer, after, request)
        factors_I = awq.search(seen[after[0]], weights, request.formats[after[0]], request.group)
        layer = _fold(c, layer, before, after, factors_I, request)
        # The next search must see these inputs as they now are.
        seen = _rescaled(seen, after, factors_I)
    return _to_nearest(layer, request)


def _by_smooth_quant(c: ModelConfig, layer: Layer, seen: Seen, request: Request) -> dict:
    # Only norms here: SmoothQuant's paper divides the inputs of attention and feed-forward.
    for before, after in _foldable(folds(c), request):
        weights = _matrices(layer, after, request)
        factors_I = smooth_quant.smoothing(seen[after[0]].largest_I, weights)
        layer = _fold(c, layer, before, after, factors_I, request)
    return _to_nearest(layer, request)


METHODS: dict[str, Callable[[ModelConfig, Layer, Seen, Request], dict]] = {
    "gptq": _by_gptq,
    "awq": _by_awq,
    "smoothquant": _by_smooth_quant,
}


def _foldable(
    pairs: Sequence[tuple[str, tuple[str, ...]]], request: Request
) -> list[tuple[str, tuple[str, ...]]]:
    """The pairs whose weights are all quantized: one that stays as it is would need the factor
    too."""
    return [pair for pair in pairs if all(path in request.formats for path in pair[1])]


def _matrices(layer: Layer, paths: Sequence[str], request: Request) -> list[jax.Array]:
    return [smooth_quant.as_matrix(layer[path], request.inputs[path]) for path in paths]


def _fold(
    c: ModelConfig,
    layer: Layer,
    before: str,
    after: Sequence[str],
    factors_I: jax.Array,
    request: Request,
) -> dict[str, jax.Array]:
    inputs = {path: request.inputs[path] for path in after}
    return smooth_quant.fold(layer, before, inputs, factors_I, c.norm_offset)


def _rescaled(seen: Seen, after: Sequence[str], factors_I: jax.Array) -> dict[str, Inputs]:
    """What the weights would have seen after a fold."""
    changed = dict(seen)
    for path in after:
        s = seen[path]
        # x / s on both sides of x^T x.
        gram_II = s.gram_II / factors_I[:, None] / factors_I[None]
        changed[path] = Inputs(s.count, s.total_I / factors_I, s.largest_I / factors_I, gram_II)
    return changed


def _to_nearest(layer: Layer, request: Request) -> dict:
    changed = dict(layer)
    for path, format in request.formats.items():
        inputs = request.inputs[path]
        changed[path] = quantize_array(layer[path], format, inputs=inputs, group=request.group)
    return changed
