"""Muon: momentum made orthogonal, matrix by matrix, also where the matrices are stacked and
sharded.

Keller Jordan's optimizer for hidden matrices (https://kellerjordan.github.io/posts/muon) with the
bias-corrected momentum and iteration of `optax.contrib.muon`, which refuses sharded matrices, and
with the update scale of arXiv:2502.16982, section 2.2, that lets it share a learning rate with
AdamW.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from research import tree
from research.weights.matrices import STACKED

ITERATIONS = 5
# Jordan's: the largest slope at 0 whose iterations end within about 0.7 to 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
RMS = 0.2  # of an update, as AdamW's is in practice (arXiv:2502.16982, section 2.2)


def stack_axes(axes: Sequence[str]) -> int:
    """How many leading axes number layers or experts."""
    return next((n for n, name in enumerate(axes) if name not in STACKED), len(axes))


def matrix_axes(axes: Sequence[str]) -> tuple[int, int] | None:
    """(leading stack axes, row axes) of a parameter with these logical axes, or None where it is no
    matrix.

    A head axis belongs to the heads before it, so an attention kernel is a matrix and its bias a
    vector:

    >>> matrix_axes(("layers", "embed", "heads", "head"))
    (1, 1)
    >>> matrix_axes(("layers", "heads", "head", "embed"))
    (1, 2)
    >>> matrix_axes(("layers", "heads", "head")) is None
    True
    """
    stacks = stack_axes(axes)
    groups = [name for name in axes[stacks:] if name != "head"]
    if len(groups) != 2:
        return None
    second = axes.index(groups[1], stacks + 1)
    return stacks, second - stacks


class MuonState(NamedTuple):
    """Updates made so far, and the moving average of the gradients."""

    count: jax.Array
    momentum: tree.Tree


def scale_by_muon(axes: tree.Tree, momentum: float = 0.95) -> optax.GradientTransformation:
    """Replaces gradients by matrices with about equal singular values and a root mean square of
    about `RMS`.

    `axes` has the structure of the parameters and for each a string such as "layers embed mlp"; all
    must be matrices.
    """

    def init(params):
        return MuonState(jnp.zeros([], jnp.int32), optax.tree.zeros_like(params))

    def update(updates, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        average = optax.tree.update_moment(updates, state.momentum, momentum, 1)
        # Nesterov: the average as the next gradient would leave it, were it this one
        ahead = jax.tree.map(
            lambda m, g: momentum * m + (1 - momentum) * g,
            optax.tree.bias_correction(average, momentum, optax.safe_increment(count)),
            optax.tree.bias_correction(updates, momentum, count),
        )
        return jax.tree.map(
            lambda x, names: _orthogonalize(x, names.split()), ahead, axes
        ), MuonState(count, average)

    return optax.GradientTransformation(init, update)


def _orthogonalize(x: jax.Array, axes: Sequence[str]) -> jax.Array:
    """The update for averaged gradients `x` with these logical axes, sharded as `x`."""
    stacks, row_axes = matrix_axes(axes)
    sharding = jax.typeof(x).sharding
    if sharding.mesh.empty or not sharding.mesh.are_all_axes_explicit:
        return _local_update(x, stacks, row_axes)
    moves = _moves(x.shape, sharding, stacks)

    def local(part):
        return _split_again(
            _local_update(_whole(part, moves), stacks, row_axes), part.shape[0], moves
        )

    # Every device ends with what it began with, which the check of replication cannot know.
    return jax.shard_map(local, in_specs=sharding.spec, out_specs=sharding.spec, check_vma=False)(x)


def _local_update(x: jax.Array, stacks: int, row_axes: int) -> jax.Array:
    rows = math.prod(x.shape[stacks : stacks + row_axes])
    columns = math.prod(x.shape[stacks + row_axes :])
    matrices = x.reshape(*x.shape[:stacks], rows, columns).astype(jnp.float32)
    # An orthogonal matrix has a root mean square of 1 / sqrt(max(rows, columns)).
    update = _newton_schulz(matrices) * (RMS * math.sqrt(max(rows, columns)))
    return update.reshape(x.shape).astype(x.dtype)


def _newton_schulz(x: jax.Array) -> jax.Array:
    """Every matrix U S V' of `x` [..., rows, columns] as about U V', by five steps of a quintic
    iteration in S."""
    if x.shape[-2] > x.shape[-1]:
        return _newton_schulz(x.mT).mT
    a, b, c = COEFFICIENTS

    def step(_, x):
        gram = x @ x.mT
        return a * x + (b * gram + c * gram @ gram) @ x

    return jax.lax.fori_loop(
        0, ITERATIONS, step, x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-8)
    )


class _Move(NamedTuple):
    """A mesh axis, the matrix dimension that it splits or None, and whether it is to split the
    layers instead."""

    name: str
    size: int
    dimension: int | None
    to_layers: bool


def _moves(
    shape: tuple[int, ...], sharding: jax.sharding.NamedSharding, stacks: int
) -> list[_Move]:
    """What makes the matrices whole: mesh axes that split them split the layers instead, down to
    one layer a device.

    The exchange is then one all-to-all per mesh axis, and no device computes what another does.
    """
    spec, mesh = sharding.spec, sharding.mesh
    entries = [_mesh_axes(entry) for entry in spec]
    # The minor axis of a dimension first: its parts lie side by side.
    found = [(name, d) for d in range(stacks, len(shape)) for name in reversed(entries[d])]
    taken = {name for entry in entries for name in entry}
    found += [(name, None) for name in mesh.axis_names if name not in taken]
    movable = shape[0] if stacks and not entries[0] else 1
    moves, parts = [], 1
    for name, dimension in found:
        size = mesh.shape[name]
        to_layers = parts < movable and size > 1
        parts *= size if to_layers else 1
        if size > 1 and (to_layers or dimension is not None):
            moves.append(_Move(name, size, dimension, to_layers))
    return moves


def _mesh_axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of one dimension of a PartitionSpec."""
    if entry is None:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)


def _whole(x: jax.Array, moves: list[_Move]) -> jax.Array:
    """A device's part of the stack as whole matrices of some of its layers; zero matrices fill the
    last share."""
    parts = math.prod(move.size for move in moves if move.to_layers)
    x = jnp.pad(x, [(0, -x.shape[0] % parts)] + [(0, 0)] * (x.ndim - 1))
    for name, size, dimension, to_layers in moves:
        if not to_layers:
            x = jax.lax.all_gather(x, name, axis=dimension, tiled=True)
        elif dimension is None:
            x = _own_part(x, name, size, 0)
        else:
            x = jax.lax.all_to_all(x, name, split_axis=0, concat_axis=dimension, tiled=True)
    return x


def _split_again(x: jax.Array, layers: int, moves: list[_Move]) -> jax.Array:
    """Undoes `_whole`."""
    for name, size, dimension, to_layers in reversed(moves):
        if not to_layers:
            x = _own_part(x, name, size, dimension)
        elif dimension is None:
            x = jax.lax.all_gather(x, name, axis=0, tiled=True)
        else:
            x = jax.lax.all_to_all(x, name, split_axis=dimension, concat_axis=0, tiled=True)
    return x[:layers]


def _own_part(x: jax.Array, name: str, size: int, dimension: int) -> jax.Array:
    width = x.shape[dimension] // size
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(name) * width, width, dimension)
