"""Adam with moments in eight bits (arXiv:2110.02861): 2 bytes a parameter instead of 8.

Both moments are quantized with bitsandbytes' dynamic maps, see `blocks8bit`; arithmetic is in
float32.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from research import tree
from research.devices.backend import platform
from research.parallel.placement import by_part
from research.training.blocks8bit import (
    BLOCK,
    Moment,
    block_of,
    dequantize,
    quantize,
    zeros,
)
from research.training.muon import stack_axes
from research.weights.dynamic_map import DYNAMIC_MAP, UNSIGNED_DYNAMIC_MAP

# Values of small parameters that a GPU updates in one go: 64 MiB of each float32 array.
JOINT = 2**24


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
            [zeros(p, block_of(p.shape, n)) for p, n in zip(leaves, _stacks(params, names))]
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
        stacks = _stacks(updates, names)
        whole = list(zip(leaves, *map(structure.flatten_up_to, (state.mu, state.nu))))
        adam = partial(_adam, settings=(b1, b2, eps))
        results: dict[int, tuple] = {}
        for group in _joint_groups(leaves, stacks):
            of_group = _jointly(partial(adam, corrections), [whole[i] for i in group])
            results |= dict(zip(group, of_group))
        for i, leaf in enumerate(whole):
            if i not in results:
                results[i] = _alone(adam, corrections, leaf, stacks[i])
        if not results:
            return updates, Adam8bitState(count, state.mu, state.nu)
        in_order = zip(*(results[i] for i in range(len(whole))))
        steps, mus, nus = map(structure.unflatten, in_order)
        return steps, Adam8bitState(count, mus, nus)

    return optax.GradientTransformation(_init, _update)


def _stacks(params: tree.Tree, names: tree.Tree | None) -> list[int]:
    """For each parameter the number of leading axes that number layers or experts; 0 without
    names."""
    structure = jax.tree.structure(params)
    if names is None:
        return [0] * structure.num_leaves
    return [stack_axes(name.split()) for name in structure.flatten_up_to(names)]


def _alone(
    adam: Callable, corrections: tuple, leaf: tuple[jax.Array, Any, Any], stacked: int
) -> tuple[jax.Array, Any, Any]:
    """`adam` of one parameter: at once, or layer after layer where its moments are codes."""
    block = block_of(leaf[0].shape, stacked)
    # Small parameters are not worth a loop.
    if block is None or not stacked:
        return adam(corrections, *leaf, block=block)
    inner = (block[0] - 1, block[1])

    def _update(corrections, g, moments):
        return _each_layer(lambda one: adam(corrections, *one, block=inner), g, moments)

    return by_part(_update, corrections, leaf[0], leaf[1:])


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


def _adam(corrections, g, mu, nu, *, settings, block) -> tuple[jax.Array, Any, Any]:
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


def _joint_groups(leaves: Sequence[jax.Array], stacks: Sequence[int]) -> list[list[int]]:
    """Indices of the parameters that are updated together, in groups of at most JOINT values.

    Adapters are many small arrays. On a GPU a loop over the layers of each is thousands of launches
    a step, and its program half of what is compiled; no card has timed either way. Blocks of 256
    values in a row of memory are the same in any shape, so parameters of whole blocks become one
    array of blocks. A CPU keeps its loops, and with them the last bit of its results; a TPU's tiles
    would have to be laid out anew.
    """
    mesh = jax.sharding.get_abstract_mesh()
    # Blocks of an array that devices split do not lie in a row on one of them.
    if platform() != "gpu" or (not mesh.empty and mesh.size > 1):
        return []
    groups: list[list[int]] = []
    room = 0
    for i, (leaf, stacked) in enumerate(zip(leaves, stacks)):
        block = block_of(leaf.shape, stacked)
        values = None if block is None else block[1] * int(np.prod(leaf.shape[block[0] + 1 :]))
        if values != BLOCK or leaf.size > JOINT:
            continue
        if leaf.size > room or leaf.dtype != leaves[groups[-1][0]].dtype:
            groups, room = [*groups, []], JOINT
        groups[-1].append(i)
        room -= leaf.size
    return [group for group in groups if len(group) > 1]


def _jointly(adam: Callable, members: list[tuple]) -> list[tuple[jax.Array, Moment, Moment]]:
    """`adam` of several (gradient, first moment, second moment) as of one array [blocks, BLOCK]."""
    gradient = _blocks([g for g, _, _ in members])
    moments = [
        Moment(
            _blocks([member[at].codes for member in members]),
            _blocks([member[at].absmax for member in members], width=1),
        )
        for at in (1, 2)
    ]
    results = adam(gradient, *moments, block=(1, BLOCK))
    # Back into the parameters' own shapes, one after the other as they were joined.
    parts = []
    first = 0
    for g, mu, nu in members:
        rows = slice(first, first := first + g.size // BLOCK)
        own = jax.tree.map(lambda x, rows=rows: x[rows], results)
        parts.append(jax.tree.map(_like, own, (g, mu, nu)))
    return parts


def _blocks(arrays: Sequence[jax.Array], width: int = BLOCK) -> jax.Array:
    """The arrays' values one after the other in rows of `width`."""
    return jnp.concatenate([_reshaped(x, (x.size // width, width), (None, None)) for x in arrays])


def _like(x: jax.Array, like: jax.Array) -> jax.Array:
    sharded = not jax.sharding.get_abstract_mesh().empty
    return _reshaped(x, like.shape, jax.typeof(like).sharding.spec if sharded else ())


def _reshaped(x: jax.Array, shape: tuple[int, ...], place: Sequence) -> jax.Array:
    """`x` in another shape and, under a mesh, sharding; the mesh has one device."""
    if jax.sharding.get_abstract_mesh().empty:
        return x.reshape(shape)
    # Axes of size 1 may be named; a reshape wants to know where they go.
    whole = jax.reshard(x, PartitionSpec(*[None] * x.ndim))
    flat = jnp.reshape(whole, shape, out_sharding=PartitionSpec(*[None] * len(shape)))
    return jax.reshard(flat, PartitionSpec(*place))
