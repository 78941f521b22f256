"""Initial values of low-rank adapters that are taken from the weight, W = base + s a b, instead of
from noise and zero.

    pissa   a b holds the R largest singular triples of W (arXiv:2404.02948, equations 2 to 4)
    olora   b has the first R rows of an orthonormal basis of the outputs, a their factors in the QR
            decomposition of W (arXiv:2406.01775)
    loftq   a b holds the R largest singular triples of W - Q(base), and base = W - s a b, computed
            in alternation (arXiv:2310.08659, algorithm 1)

Signs of singular vectors are arbitrary and differ between libraries; their product a b does not.
"""

import math
from collections.abc import Callable, Container, Iterable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research import tree
from research.parallel.placement import spec_entries
from research.tuning.lora_specs import STARTS
from research.weights.lora import Lora, LoraAdapter
from research.weights.matrices import split_axes
from research.weights.quantized import Quantized, quantize_array
from research.weights.rules import Rules, is_leaf, quantize

# Alternations of rounding and decomposing. Each costs a decomposition of every adapted matrix.
LOFTQ_STEPS = 5  # arXiv:2310.08659, section 4.1

Factors = tuple[jax.Array, jax.Array]


def start(
    method: str,
    adapters: tree.Tree,
    params: tree.Tree,
    specs: tree.Tree,
    rules: Rules | None = None,
    group: int | None = None,
) -> tuple[tree.Tree, tree.Tree]:
    """(adapters, parameters) at the start of a run: the parameters less what the adapters took
    over, quantized by `rules`. Called once, outside jit.

    `params` are the loaded arrays, `adapters` freshly initialized ones. `rules` and `group` are
    those of `research.weights.rules.quantize`. Quantization happens here because LoftQ needs its
    error, and because DoRA's magnitudes start as the column norms of the quantized weights. With
    "default" only these magnitudes change.

    ValueError for an unknown method, for weights that are quantized already, and for LoftQ of a
    weight that no rule quantizes.
    """
    if method not in STARTS:
        raise ValueError(f"lora.start={method!r}; choose one of {', '.join(STARTS)}")
    adapted, weights = tree.paths(adapters, is_leaf), tree.paths(params, is_leaf)
    by_path, choices = tree.paths(specs), tree.choose(rules or [(".*", None)], specs)
    formats = tree.paths(choices, is_leaf=lambda node: node is None)
    # Other kinds of adapters (IA3, bottlenecks) have nothing that could be taken from a weight.
    lora = {path: adapter for path, adapter in adapted.items() if isinstance(adapter, LoraAdapter)}
    _check_weights(lora, weights.keys() & by_path.keys())
    for path, adapter in lora.items() if method != "default" else ():
        if method == "loftq" and formats[path] is None:
            raise ValueError(
                f"loftq wants {path} quantized; set config.quantize.format, or another "
                "config.lora.start"
            )
        adapted[path], weights[path] = _started(
            method, path, adapter, weights[path], by_path[path], formats[path], group
        )
    # Quantization comes after the split: Q(base), not Q(W), is what the run computes with.
    for path in weights if rules is not None else ():
        if formats.get(path) is not None:
            weights[path] = _quantized(path, weights[path], specs, rules, group)
    for path in lora:
        if adapted[path].magnitude is not None:
            # Of the weight as it is computed with, so that the gain is 1 and DoRA starts as LoRA
            # does.
            # m / |W + s a b| = 1 before the first step (arXiv:2402.09353, equation 5).
            norms = column_norms(weights[path], adapted[path])
            adapted[path] = replace(adapted[path], magnitude=_like(norms, adapted[path].magnitude))
    return tree.unflatten(adapted), tree.unflatten(weights)


def _check_weights(adapters: Iterable[str], weights: Container[str]) -> None:
    for path in adapters:
        if path not in weights:
            raise ValueError(
                f"the adapter has {path}, which the parameters have not; it was made for another "
                "model"
            )


def pissa(w_IO: jax.Array, rank: int, scale: jax.Array) -> Factors:
    """(a [I, R], b [R, O]) such that scale * a b is the best rank-R approximation of `w_IO` in the
    Frobenius norm."""
    # W = U S V^T. U has the singular vectors of the inputs here, because our weights are [in,
    # out] where the paper and torch have [out, in].
    left_IR, values, right_RO = jnp.linalg.svd(w_IO, full_matrices=False)
    # Both factors get the root of the singular values (equations 2 and 3), so they start equally
    # large.
    root = jnp.sqrt(values[:rank] / scale)
    return left_IR[:, :rank] * root[None, :], right_RO[:rank] * root[:, None]


def olora(w_IO: jax.Array, rank: int, scale: jax.Array) -> Factors:
    """(a [I, R], b [R, O]) with orthonormal rows in b: a b is the matrix projected on R of its
    output directions. As in peft the factors do not depend on `scale`; the base loses scale * a
    b."""
    # peft decomposes its weight [out, in], the transpose of ours.
    basis_OR, rest_RI = jnp.linalg.qr(w_IO.T)
    return rest_RI[:rank].T, basis_OR[:, :rank].T


def loftq(
    w_IO: jax.Array,
    rank: int,
    scale: jax.Array,
    rounded: Callable[[jax.Array], jax.Array],
    steps: int = LOFTQ_STEPS,
) -> tuple[Factors, jax.Array]:
    """((a [I, R], b [R, O]), base [I, O]) after `steps` alternations; `rounded(base)` returns the
    quantized base as an array, and the caller quantizes the returned base.

    Each low-rank step is optimal, but the rounding step is not, so the error may grow in between.
    """

    def _step(_, before: tuple[jax.Array, Factors]) -> tuple[jax.Array, Factors]:
        # Algorithm 1 of the paper: Q_t = q(W - A B) and then A, B = SVD_R(W - Q_t). The base is
        # returned before rounding, so that one place in the code quantizes and stores it.
        base_IO = w_IO - scale * (before[1][0] @ before[1][1])
        return base_IO, pissa(w_IO - rounded(base_IO), rank, scale)

    # The factors start at zero, so the first base is the weight itself.
    # A `fori_loop` compiles one step, whatever the number of steps; its carry needs arrays of
    # fixed shape from the beginning.
    no_factors = jnp.zeros((w_IO.shape[0], rank)), jnp.zeros((rank, w_IO.shape[1]))
    base_IO, factors = jax.lax.fori_loop(0, steps, _step, (w_IO, no_factors))
    return factors, base_IO


def _started(
    method: str,
    path: str,
    adapter: LoraAdapter,
    w: Any,
    spec: Any,
    format: str | None,
    group: int | None,
) -> tuple[LoraAdapter, jax.Array]:
    """An adapter and its base. The matrices of a stack are decomposed one after the other, because
    each is in float32 meanwhile."""
    _check_start(method, path, adapter, w)
    # From here on every weight is a stack of matrices [I, O]: several input or output axes are
    # merged into one, and a table [V, D] is transposed.
    stack, inner, outer = ([size for size, _ in axes] for axes in split_axes(path, spec))
    rank, table = adapter.b.shape[len(stack)], spec.inputs < 0

    def _matrix(w: jax.Array) -> jax.Array:
        w = w.astype(jnp.float32)
        return w.T if table else w.reshape(math.prod(inner), math.prod(outer))

    def _weight(w_IO: jax.Array) -> jax.Array:
        return (w_IO.T if table else w_IO.reshape(*inner, *outer)).astype(w.dtype)

    def _rounded(w_IO: jax.Array) -> jax.Array:
        return _matrix(
            quantize_array(_weight(w_IO), format, inputs=spec.inputs, group=group).dense()
        )

    def _decompose(
        w_and_scale: tuple[jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        w_IO, scale = _matrix(w_and_scale[0]), w_and_scale[1]
        if method == "loftq":
            (a_IR, b_RO), base_IO = loftq(w_IO, rank, scale, _rounded)
        else:
            a_IR, b_RO = {"pissa": pissa, "olora": olora}[method](w_IO, rank, scale)
            # The residual: base + scale a b is W, up to the base's rounding to its type.
            base_IO = w_IO - scale * (a_IR @ b_RO)
        return a_IR, b_RO, _weight(base_IO)

    # Whole matrices on every device: singular vectors mix all rows and columns.
    stacked_matrices = (
        _replicated(w).reshape(-1, *w.shape[len(stack) :]),
        _replicated(adapter.scale).reshape(-1),
    )
    # `map` and not vmap: one matrix at a time is in memory as float32 with its factors.
    a, b, base = jax.jit(lambda pairs: jax.lax.map(_decompose, pairs))(stacked_matrices)
    adapter = replace(adapter, a=_like(a, adapter.a), b=_like(b, adapter.b))
    return adapter, _like(base, w)


def _check_start(method: str, path: str, adapter: LoraAdapter, w: Any) -> None:
    """ValueError for a weight that is no array, and for a scale that is not positive."""
    if not isinstance(w, jax.Array):
        raise ValueError(
            f"{path} is a {type(w).__name__} already; start {method} from the plain parameters"
        )
    if not bool(jnp.all(adapter.scale > 0)):
        raise ValueError(
            f"{method} divides by the scale of {path}, which must be positive; set "
            "config.lora.alpha"
        )


def _quantized(path: str, w: Any, specs: tree.Tree, rules: Rules, group: int | None) -> Quantized:
    """One weight quantized by `rules.quantize`, its codes and scales sharded as the weight was:
    groups take the mesh axes of the first input."""
    # A group may span several devices' parts of the inputs, so its scale is taken from the whole.
    alone = tree.unflatten({path: jax.tree.map(_replicated, w)})
    leaf = tree.paths(quantize(alone, specs, rules, group), is_leaf)[path]
    if jax.sharding.get_abstract_mesh().empty:
        return leaf
    at, entries = leaf.group_axis, spec_entries(w)
    # Quantized, the input axes are two: [groups, within a group]. The second is never split.
    entries = (*entries[: at + 1], None, *entries[at + len(leaf.inputs) :])

    def _place(part: jax.Array) -> jax.Array:
        if part.ndim != len(entries):  # a row of doubly quantized scales, which is replicated
            return part
        # Fewer groups than devices: such an axis stays unsplit.
        fits = (
            names if size % _devices(names) == 0 else None
            for names, size in zip(entries, part.shape)
        )
        return jax.reshard(part, PartitionSpec(*fits))

    def _devices(names: str | tuple[str, ...] | None) -> int:
        names = (names,) if isinstance(names, str) else names or ()
        return math.prod(w.sharding.mesh.shape[name] for name in names)

    return jax.tree.map(_place, leaf)


def column_norms(base: Any, adapter: LoraAdapter) -> jax.Array:
    """The norm over the inputs of each column of the weight with its adapter, float32 with the
    output axes: the initial DoRA magnitude (arXiv:2402.09353, section 4.1). The adapter's own
    magnitude is ignored."""
    plain = Lora(
        jax.tree.map(_replicated, base), jax.tree.map(_replicated, replace(adapter, magnitude=None))
    ).dense()
    inner = (
        (plain.ndim - 1,) if adapter.table else tuple(range(adapter.scale.ndim, adapter.a.ndim - 1))
    )
    return jnp.sqrt(jnp.sum(plain**2, axis=inner))


def _replicated(x: jax.Array) -> jax.Array:
    """`x` replicated: every device of the mesh that is set has all of it."""
    return x if jax.sharding.get_abstract_mesh().empty else jax.reshard(x, PartitionSpec())


def _like(x: jax.Array, model: jax.Array) -> jax.Array:
    """`x` with the shape, type and sharding of another array."""
    return jax.device_put(x.reshape(model.shape).astype(model.dtype), model.sharding)
