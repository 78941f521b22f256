"""Muon: orthogonalized momentum, for matrices that are stacked over layers and sharded.

Keller Jordan's optimizer for hidden matrices (https://kellerjordan.github.io/posts/muon). Momentum,
its bias correction and the iteration are those of `optax.contrib.muon`, which does not take sharded
matrices. Updates are scaled as in arXiv:2502.16982, section 2.2, so that Muon and AdamW can share a
learning rate.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from research import tree
from research.weights.matrices import STACKED

ITERATIONS = 5  # of Newton-Schulz, as in Jordan's post
# Jordan's coefficients: as steep at 0 as possible while the iteration still brings all singular
# values to about 0.7 to 1.2. It does not converge to exactly 1, which is not needed.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
RMS = 0.2  # root mean square of an update, about that of AdamW (arXiv:2502.16982, section 2.2)


def stack_axes(axes: Sequence[str]) -> int:
    """Number of leading axes that number layers or experts."""
    return next((n for n, name in enumerate(axes) if name not in STACKED), len(axes))


def matrix_axes(axes: Sequence[str]) -> tuple[int, int] | None:
    """(number of stack axes, number of row axes) of a matrix with these logical axes; None for
    other parameters.

    A head axis belongs to the heads axis before it, so an attention kernel is a matrix and its bias
    a vector:

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
    """`count`: int32 number of updates so far; `momentum`: moving average of the gradients, a tree
    like the parameters."""

    count: jax.Array
    momentum: tree.Tree


def scale_by_muon(axes: tree.Tree, momentum: float = 0.95) -> optax.GradientTransformation:
    """Replaces gradients by matrices with nearly equal singular values and a root mean square of
    about `RMS`.

    `axes` is a tree like the parameters, with a string such as "layers embed mlp" for each; all
    must be matrices (see `matrix_axes`).
    """

    def _init(params):
        return MuonState(jnp.zeros([], jnp.int32), optax.tree.zeros_like(params))

    def _update(updates, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        # m_t = momentum m + (1 - momentum) g, as an average: the update's size is set below
        # anyway.
        average = optax.tree.update_moment(updates, state.momentum, momentum, 1)
        # Nesterov momentum: the average after one more step with the same gradient.
        ahead = jax.tree.map(
            lambda m, g: momentum * m + (1 - momentum) * g,
            optax.tree.bias_correction(average, momentum, optax.safe_increment(count)),
            optax.tree.bias_correction(updates, momentum, count),
        )
        return jax.tree.map(
            lambda x, names: _orthogonalize(x, names.split()), ahead, axes
        ), MuonState(count, average)

    return optax.GradientTransformation(_init, _update)


def _orthogonalize(x: jax.Array, axes: Sequence[str]) -> jax.Array:
    """The update for averaged gradients `x` with these logical axes, sharded like `x`."""
    stacks, row_axes = matrix_axes(axes)
    sharding = jax.typeof(x).sharding
    # Without explicit axes the compiler partitions the products itself.
    if sharding.mesh.empty or not sharding.mesh.are_all_axes_explicit:
        return _local_update(x, stacks, row_axes)
    moves = _moves(x.shape, sharding, stacks)

    def _local(part):
        return _split_again(
            _local_update(_whole(part, moves), stacks, row_axes), part.shape[0], moves
        )

    # check_vma cannot tell that `_split_again` restores the replication that `_whole` began with.
    return jax.shard_map(_local, in_specs=sharding.spec, out_specs=sharding.spec, check_vma=False)(
        x
    )


def _local_update(x: jax.Array, stacks: int, row_axes: int) -> jax.Array:
    # Heads and head size together are one side of the matrix.
    rows = math.prod(x.shape[stacks : stacks + row_axes])
    columns = math.prod(x.shape[stacks + row_axes :])
    matrices = x.reshape(*x.shape[:stacks], rows, columns).astype(jnp.float32)
    # An orthogonal matrix has a root mean square of 1 / sqrt(max(rows, columns)).
    update = _newton_schulz(matrices) * (RMS * math.sqrt(max(rows, columns)))
    return update.reshape(x.shape).astype(x.dtype)


def _newton_schulz(x: jax.Array) -> jax.Array:
    """Approximately U V' for every matrix U S V' of `x` [..., rows, columns], by five steps of a
    quintic Newton-Schulz iteration on S."""
    # The Gram matrix x x' is smaller for the transpose of a tall matrix.
    if x.shape[-2] > x.shape[-1]:
        return _newton_schulz(x.mT).mT
    a, b, c = COEFFICIENTS

    def _step(_, x):
        # X' = a X + b (X X') X + c (X X')^2 X: a polynomial of the singular values alone, as X
        # and X X' have the same left vectors.
        gram = x @ x.mT
        return a * x + (b * gram + c * gram @ gram) @ x

    # Divided by the Frobenius norm no singular value is over 1, where the iteration would diverge.
    # 1e-8 keeps a gradient of zeros zero.
    start = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-8)
    return jax.lax.fori_loop(0, ITERATIONS, _step, start)


class _Move(NamedTuple):
    """One exchange between devices on the way to whole matrices.

    name, size   the mesh axis and its number of devices
    dimension    the dimension of the matrices that it splits; None if it splits none
    to_layers    True if it splits the layers instead afterwards, False if it is gathered
    """

    name: str
    size: int
    dimension: int | None
    to_layers: bool


def _moves(
    shape: tuple[int, ...], sharding: jax.sharding.NamedSharding, stacks: int
) -> list[_Move]:
    """The exchanges after which every device has whole matrices. Mesh axes that split matrices, and
    idle ones, split the layers instead, until each device has one layer.

    Each is one all-to-all, so devices do not repeat each other's work. If there are more devices
    than layers, the remaining axes that split matrices are gathered.
    """
    # Data-parallel devices would otherwise all orthogonalize the same layers.
    spec, mesh = sharding.spec, sharding.mesh
    entries = [_mesh_axes(entry) for entry in spec]
    # The minor axis of a dimension first: its parts lie side by side.
    candidates = [(name, d) for d in range(stacks, len(shape)) for name in reversed(entries[d])]
    taken = {name for entry in entries for name in entry}
    candidates += [(name, None) for name in mesh.axis_names if name not in taken]
    # Layers that a mesh axis splits already are left where they are.
    movable = shape[0] if stacks and not entries[0] else 1
    moves, pieces = [], 1
    for name, dimension in candidates:
        size = mesh.shape[name]
        to_layers = pieces < movable and size > 1
        pieces *= size if to_layers else 1
        if size > 1 and (to_layers or dimension is not None):
            moves.append(_Move(name, size, dimension, to_layers))
    return moves


def _mesh_axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of one dimension of a PartitionSpec."""
    if entry is None:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)


def _whole(x: jax.Array, moves: list[_Move]) -> jax.Array:
    """A device's share of the stack as whole matrices of fewer layers. Zero matrices are appended
    if the layers do not divide evenly; they stay zero and `_split_again` drops them."""
    parts = math.prod(move.size for move in moves if move.to_layers)
    # all_to_all wants equal parts of the layers on all devices.
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
    """The inverse of `_whole`: the exchanges backwards, without the padded layers."""
    for name, size, dimension, to_layers in reversed(moves):
        if not to_layers:
            x = _own_part(x, name, size, dimension)
        elif dimension is None:
            x = jax.lax.all_gather(x, name, axis=0, tiled=True)
        else:
            x = jax.lax.all_to_all(x, name, split_axis=dimension, concat_axis=0, tiled=True)
    return x[:layers]


def _own_part(x: jax.Array, name: str, size: int, dimension: int) -> jax.Array:
    # The part that this device keeps of an array which all devices along the axis have whole.
    width = x.shape[dimension] // size
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(name) * width, width, dimension)
