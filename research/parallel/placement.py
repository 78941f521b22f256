"""Where arrays live: reading, deriving and changing the sharding of an array under explicit mesh
axes.

Shardings are types in JAX's explicit mode, so each function reads them from the arrays themselves.
Without a mesh, and on one device's part inside `jax.shard_map`, everything here returns its
argument as it is.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.devices.backend import platform
from research.parallel.axes import AXES, COMPUTE, as_entry
from research.parallel.collectives import all_gather


def spec(x: jax.Array) -> tuple:
    """Entries of the array's PartitionSpec, one a dimension."""
    entries = tuple(jax.typeof(x).sharding.spec)
    return entries + (None,) * (x.ndim - len(entries))


def placed(x: jax.Array) -> PartitionSpec | None:
    """Where `x` lives, one entry a dimension; None without a mesh."""
    return None if jax.sharding.get_abstract_mesh().empty else PartitionSpec(*spec(x))


def place_as(x: jax.Array, place: PartitionSpec | None) -> jax.Array:
    """`x` moved to where `placed` said that something lives."""
    return x if place is None or spec(x) == tuple(place) else jax.reshard(x, place)


def local_shape(x: jax.Array) -> tuple[int, ...]:
    """The shape of one device's part of `x`."""
    return (
        x.shape
        if jax.sharding.get_abstract_mesh().empty
        else jax.typeof(x).sharding.shard_shape(x.shape)
    )


def unplaced() -> bool:
    """Whether arrays have no shardings here: without a mesh, and on one device's part inside
    `shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.are_all_axes_manual


def whole(x: jax.Array, axis: int) -> jax.Array:
    """`x` gathered along one axis: every device holds all of it."""
    if jax.sharding.get_abstract_mesh().empty or spec(x)[axis] is None:
        return x
    return jax.reshard(
        x, PartitionSpec(*(None if i == axis else entry for i, entry in enumerate(spec(x))))
    )


def gather(w: jax.Array) -> jax.Array:
    """`w` with the mesh axes that only store it gathered (the all-gather of fully sharded data
    parallelism)."""
    if jax.sharding.get_abstract_mesh().empty:
        return w
    kept = PartitionSpec(*(as_entry(computing(entry)) for entry in spec(w)))
    if tuple(kept) == spec(w):
        return w
    if platform() != "tpu" or not joinable(w):
        return jax.reshard(w, kept)
    join = partial(join_parts, stored=storing(spec(w)))
    return jax.shard_map(join, in_specs=placed(w), out_specs=kept, check_vma=False)(w)


def join_parts(w: jax.Array, stored: Sequence[tuple[str, ...]]) -> jax.Array:
    """Inside `shard_map`, the parts of each dimension of `w` that the devices of these mesh axes
    hold, as one array."""
    for axis, names in enumerate(stored):
        for name in reversed(names):
            w = all_gather(w, name, axis)
    return w


def joinable(w: jax.Array) -> bool:
    """Whether the parts of `w` that only storage splits lie side by side: no axis of computation
    splits them further."""
    return all(
        mesh_axes(entry) == (*computing(entry), *names)
        for entry, names in zip(spec(w), storing(spec(w)))
    )


def storing(entries: Sequence) -> list[tuple[str, ...]]:
    """Of the mesh axes of each dimension, those that only store it."""
    return [tuple(name for name in mesh_axes(entry) if AXES[name] != COMPUTE) for entry in entries]


def divide(x: jax.Array, axis: int, parts: int) -> jax.Array:
    """`x` with an axis as two, of `parts` and of the rest; the first of them keeps the mesh
    axes."""
    shape = (*x.shape[:axis], parts, x.shape[axis] // parts, *x.shape[axis + 1 :])
    if jax.sharding.get_abstract_mesh().empty:
        return x.reshape(shape)
    entries = spec(x)
    return jnp.reshape(
        x, shape, out_sharding=PartitionSpec(*entries[: axis + 1], None, *entries[axis + 1 :])
    )


def unite(x: jax.Array, axis: int) -> jax.Array:
    """`x` with an axis and the one behind it as one, which keeps the mesh axes of the first."""
    shape = (*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])
    if jax.sharding.get_abstract_mesh().empty:
        return x.reshape(shape)
    entries = spec(x)
    return jnp.reshape(
        x, shape, out_sharding=PartitionSpec(*entries[: axis + 1], *entries[axis + 2 :])
    )


def result_spec(eqn: str, *operands: jax.Array) -> PartitionSpec:
    """PartitionSpec of the result; ValueError where two of its letters would share a mesh axis."""
    inputs, result = eqn.split("->")
    where: dict[str, tuple[str, ...]] = {}
    for letters, operand in zip(inputs.split(","), operands):
        for letter, entry in zip(letters, spec(operand)):
            where[letter] = where.get(letter) or mesh_axes(entry)
    owner: dict[str, str] = {}
    for letter in result:
        for name in where[letter]:
            if name in owner:
                raise ValueError(
                    f"einsum {eqn!r}: {owner[name]!r} and {letter!r} are both split over mesh axis {name!r}"
                )
            owner[name] = letter
    return PartitionSpec(*(as_entry(where[letter]) for letter in result))


def mesh_axes(entry: Any) -> tuple[str, ...]:
    """The mesh axes in an entry of a PartitionSpec, the inverse of `as_entry`."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def computing(entry: Any) -> tuple[str, ...]:
    """Of the mesh axes of a dimension, those that split the computation too."""
    return tuple(name for name in mesh_axes(entry) if AXES[name] == COMPUTE)
