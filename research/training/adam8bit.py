"""Adam with moments in eight bits (arXiv:2110.02861): 2 bytes a parameter instead of 8.

Both moments are quantized with bitsandbytes' dynamic maps in blocks of up to 256 values that share
a scale; arithmetic is in float32. A block lies inside one layer. It covers the last axes of a
parameter, and of the axis before them as many entries as divide it and keep the block within 256
values: three heads of 64, one row of 192. Codes have the parameter's shape and sharding, so the
optimizer state is sharded like the parameters.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from research import tree
from research.ops.lookup import look_up, reciprocal
from research.parallel.placement import gather_axis, spec_entries, split_axis
from research.training.muon import stack_axes
from research.weights.dynamic_map import DYNAMIC_MAP, UNSIGNED_DYNAMIC_MAP

BLOCK = 256  # values that share a scale, as in bitsandbytes
# A parameter with fewer values in a layer keeps float32 moments, as in bitsandbytes.
SMALLEST = 4096
# So does one whose blocks would have fewer values: their scales would cost more than codes save.
_LEAST_BLOCK = 32


class Moment(NamedTuple):
    """A moment in 8 bits, map[codes] * absmax: `codes` uint8 in the parameter's shape, `absmax`
    float32 [..., blocks]."""

    codes: jax.Array
    absmax: jax.Array


class Adam8bitState(NamedTuple):
    """`count`: int32 number of updates so far; `mu` and `nu`: first and second moments, trees with
    a `Moment` for each parameter, or a float32 array for small ones."""

    count: jax.Array
    mu: tree.Tree
    nu: tree.Tree


def scale_by_adam_8bit(
    b1: float, b2: float, eps: float, names: tree.Tree | None = None
) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with moments in 8 bits.

    `names` is a tree like the parameters with the logical axes of each, such as "layers embed mlp".
    Stacked parameters are updated layer by layer, so that float32 moments exist for one layer at a
    time.
    """

    def _init(params):
        leaves, structure = jax.tree.flatten(params)
        # No array is shared between the moments, since a buffer can be donated only once.
        mu, nu = (
            [_zeros(p, block_of(p.shape, n)) for p, n in zip(leaves, _stacks(params, names))]
            for _ in range(2)
        )
        return Adam8bitState(
            jnp.zeros([], jnp.int32), structure.unflatten(mu), structure.unflatten(nu)
        )

    def _update(updates, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        # 1 - beta^t (algorithm 1): both moments start at zero and are too small by this factor.
        corrections = tuple(1 - jnp.float32(b) ** count.astype(jnp.float32) for b in (b1, b2))
        leaves, structure = jax.tree.flatten(updates)
        results = []
        for g, mu, nu, n in zip(
            leaves, *map(structure.flatten_up_to, (state.mu, state.nu)), _stacks(updates, names)
        ):
            block = block_of(g.shape, n)

            # The default argument binds this turn's block; the loop goes on before it is called.
            def _one(leaf, block=block):
                return _adam(*leaf, corrections, (b1, b2, eps), block)

            # Small parameters are not worth a loop.
            if block is None or not n:
                results.append(_one((g, mu, nu)))
            else:
                results.append(
                    _each_layer(partial(_one, block=(block[0] - 1, block[1])), g, (mu, nu))
                )
        steps, mus, nus = (
            map(structure.unflatten, zip(*results)) if results else (updates, state.mu, state.nu)
        )
        return steps, Adam8bitState(count, mus, nus)

    return optax.GradientTransformation(_init, _update)


def _stacks(params: tree.Tree, names: tree.Tree | None) -> list[int]:
    """For each parameter the number of leading axes that number layers or experts; 0 without
    names."""
    structure = jax.tree.structure(params)
    if names is None:
        return [0] * structure.num_leaves
    return [stack_axes(name.split()) for name in structure.flatten_up_to(names)]


def block_of(shape: Sequence[int], stacked: int = 0) -> tuple[int, int] | None:
    """(axis, entries): a block is that many entries of the axis, with everything after the axis.
    None for parameters whose moments stay in float32. The first `stacked` axes are layers or
    experts.

    >>> block_of((30, 576, 9, 64), 1), block_of((576, 1536)), block_of((30, 576), 1)
    ((2, 3), (1, 256), None)
    """
    if math.prod(shape[stacked:]) < SMALLEST:
        return None
    # From the last axis inwards, whole axes are taken as long as they fit into a block.
    axis, inner = len(shape) - 1, 1
    while axis > stacked and inner * shape[axis] <= BLOCK:
        inner, axis = inner * shape[axis], axis - 1
    # A divisor, so that no block crosses into the next row of the axis before.
    entries = max(n for n in range(1, BLOCK // inner + 1) if shape[axis] % n == 0)
    return (axis, entries) if inner * entries >= _LEAST_BLOCK else None


def quantize(x: jax.Array, block: tuple[int, int], book: np.ndarray) -> Moment:
    """`x` in 8 bits: each value becomes the code of the nearest entry of `book`, after division by
    the largest magnitude of its block.

    With the unsigned map (second moments) a positive value never becomes zero: a second moment of 0
    beside a first moment that is not 0 would give a step of size 1 / eps.
    """
    groups = _grouped(x, block)
    absmax = jnp.max(jnp.abs(groups), axis=tuple(range(block[0] + 1, groups.ndim)), keepdims=True)
    scaled = groups * reciprocal(absmax)
    codes = _nearest(scaled, book)
    # The unsigned map begins at 0, the signed one at its most negative value.
    if book[0] == 0:
        codes = jnp.where((codes == 0) & (groups > 0), 1, codes)
    absmax = jnp.squeeze(absmax, tuple(range(block[0] + 1, absmax.ndim)))
    return Moment(_ungrouped(codes.astype(jnp.uint8), block, x), absmax)


def dequantize(moment: Moment, block: tuple[int, int], book: np.ndarray) -> jax.Array:
    """The values of a moment, float32 in the parameter's shape."""
    codes = _grouped(moment.codes, block)
    absmax = jnp.expand_dims(moment.absmax, tuple(range(moment.absmax.ndim, codes.ndim)))
    return _ungrouped(look_up(book, codes) * absmax, block, moment.codes)


def _nearest(x: jax.Array, book: np.ndarray) -> jax.Array:
    """The code of the nearest entry: the number of midpoints of the map strictly below each value,
    by a binary search over its 256 entries."""
    middles = (book[1:] + book[:-1]) / np.float32(2)
    codes = jnp.zeros_like(x, jnp.int32)
    for half in (128, 64, 32, 16, 8, 4, 2, 1):
        codes += half * (x > look_up(middles, codes + (half - 1)))
    return codes


def _each_layer(
    function: Callable, g: jax.Array, moments: tuple[Moment, Moment]
) -> tuple[jax.Array, Moment, Moment]:
    """`function` applied to the gradient and moments of one layer after the other. Moments exist in
    float32 for one layer at a time."""

    def _one(moments, layer):
        index, g = layer
        layer_moments = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), moments
        )
        step, *new = function((g, *layer_moments))
        # The moments are the scan's carry, so XLA overwrites the old codes in place.
        write = partial(jax.lax.dynamic_update_index_in_dim, index=index, axis=0)
        return jax.tree.map(write, moments, tuple(new)), step

    moments, steps = jax.lax.scan(_one, moments, (jnp.arange(g.shape[0]), g))
    return steps, *moments


def _adam(g, mu, nu, corrections, settings, block) -> tuple[jax.Array, Any, Any]:
    """(update of one parameter, new first moment, new second moment) by Adam with bias correction
    (arXiv:1412.6980, algorithm 1)."""
    b1, b2, eps = settings
    x = g.astype(jnp.float32)
    if block is not None:
        mu, nu = dequantize(mu, block, DYNAMIC_MAP), dequantize(nu, block, UNSIGNED_DYNAMIC_MAP)
    # m_t = b1 m + (1 - b1) g and v_t = b2 v + (1 - b2) g^2, both in float32.
    mu, nu = b1 * mu + (1 - b1) * x, b2 * nu + (1 - b2) * x * x
    # This step uses the moments before they are rounded; only the next one sees their codes.
    step = (mu / corrections[0] / (jnp.sqrt(nu / corrections[1]) + eps)).astype(g.dtype)
    if block is not None:
        mu, nu = quantize(mu, block, DYNAMIC_MAP), quantize(nu, block, UNSIGNED_DYNAMIC_MAP)
    return step, mu, nu


def _zeros(p: jax.Array, block: tuple[int, int] | None) -> Any:
    if block is None:
        return jnp.zeros_like(p, jnp.float32)
    # Code 0 of a map need not be 0, but times an absmax of 0 it is.
    codes = jnp.zeros_like(p, jnp.uint8)
    # Zeros in the shape and sharding of the scales. The barrier keeps the compiler from spending
    # seconds on folding the maxima of a constant.
    groups = _grouped(jax.lax.optimization_barrier(codes), block)
    return Moment(
        codes, jnp.max(groups, axis=tuple(range(block[0] + 1, groups.ndim))).astype(jnp.float32)
    )


def _grouped(x: jax.Array, block: tuple[int, int]) -> jax.Array:
    """`x` [..., A, ...] as [..., A / entries, entries, ...], gathered along A if a shard boundary
    would cut a block."""
    axis, entries = block
    parts = x.shape[axis] // entries
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        # Devices that split this axis must hold whole blocks, or a scale would need its
        # neighbour's values.
        names = spec_entries(x)[axis] or ()
        shards = math.prod(
            mesh.shape[name] for name in ((names,) if isinstance(names, str) else names)
        )
        x = x if parts % shards == 0 else gather_axis(x, axis)
    return split_axis(x, axis, parts)


def _ungrouped(groups: jax.Array, block: tuple[int, int], like: jax.Array) -> jax.Array:
    """The inverse of `_grouped`, in the shape and sharding of `like`."""
    if jax.sharding.get_abstract_mesh().empty:
        return groups.reshape(like.shape)
    entries = spec_entries(groups)
    merged = PartitionSpec(*entries[: block[0] + 1], *entries[block[0] + 2 :])
    return jax.reshard(
        jnp.reshape(groups, like.shape, out_sharding=merged), PartitionSpec(*spec_entries(like))
    )
