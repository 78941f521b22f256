"""Reading, deriving and changing the sharding of an array under explicit mesh axes.

Shardings are types in JAX's explicit mode, so each function reads them from the arrays. An *entry*
is what a PartitionSpec says of one dimension: None, a mesh axis, or a tuple of them. Without a mesh
everything here returns its argument unchanged.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.devices.backend import platform
from research.parallel.axes import AXES, COMPUTE, as_entry
from research.parallel.collectives import all_gather


def spec_entries(x: jax.Array) -> tuple:
    """The entry of each dimension; JAX leaves out the last ones where they are None."""
    entries = tuple(jax.typeof(x).sharding.spec)
    return entries + (None,) * (x.ndim - len(entries))


def partition_spec(x: jax.Array) -> PartitionSpec | None:
    """The PartitionSpec of `x` with an entry for every dimension; None without a mesh."""
    return None if jax.sharding.get_abstract_mesh().empty else PartitionSpec(*spec_entries(x))


def reshard_to(x: jax.Array, place: PartitionSpec | None) -> jax.Array:
    """`x` resharded to a PartitionSpec that `partition_spec` returned; None leaves it as it is."""
    return x if place is None or spec_entries(x) == tuple(place) else jax.reshard(x, place)


def local_shape(x: jax.Array) -> tuple[int, ...]:
    """The shape of one device's shard of `x`; inside `jax.shard_map`, where `x` is one, its own."""
    if unsharded():
        return x.shape
    # Not `shard_shape`, which knows no mesh of which some axes are mapped by `jax.shard_map`.
    sizes = jax.sharding.get_abstract_mesh().shape
    parts = (math.prod(sizes[name] for name in mesh_axes(entry)) for entry in spec_entries(x))
    return tuple(size // count for size, count in zip(x.shape, parts))


def unsharded() -> bool:
    """True where arrays have no shardings: without a mesh, and on a device's shards inside
    `jax.shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.are_all_axes_manual


def gather_axis(x: jax.Array, axis: int) -> jax.Array:
    """`x` gathered along one dimension, of which every device then holds all."""
    if jax.sharding.get_abstract_mesh().empty or spec_entries(x)[axis] is None:
        return x
    entries = list(spec_entries(x))
    # None says whole on every device.
    entries[axis] = None
    return jax.reshard(x, PartitionSpec(*entries))


def gather(w: jax.Array) -> jax.Array:
    """A weight with its storage axes gathered and its compute axes as they are: the all-gather of
    fully sharded data parallelism."""
    if jax.sharding.get_abstract_mesh().empty:
        return w
    # Compute axes stay: the product itself is split along them.
    compute_spec = PartitionSpec(*(as_entry(compute_axes(entry)) for entry in spec_entries(w)))
    if tuple(compute_spec) == spec_entries(w):
        return w
    # One gather over a whole TPU slice is an all-reduce of full size to its compiler; in stages, as
    # `all_gather` does it, it moves half. That wants contiguous shards.
    if platform() != "tpu" or not contiguous(w):
        return jax.reshard(w, compute_spec)
    join = partial(join_parts, stored=storage_axes(spec_entries(w)))
    return jax.shard_map(join, in_specs=partition_spec(w), out_specs=compute_spec, check_vma=False)(
        w
    )


def join_parts(w: jax.Array, stored: Sequence[tuple[str, ...]]) -> jax.Array:
    """Inside `jax.shard_map`: a device's shard `w` with each dimension gathered over these mesh
    axes, which `storage_axes` gives."""
    for axis, names in enumerate(stored):
        # The last mesh axis of a dimension splits it finest, so its shards are joined first.
        for name in reversed(names):
            w = all_gather(w, name, axis)
    return w


def contiguous(w: jax.Array) -> bool:
    """True if each dimension is sharded by compute axes first and storage axes last, so that
    gathering the storage axes yields contiguous blocks."""
    return all(
        mesh_axes(entry) == (*compute_axes(entry), *names)
        for entry, names in zip(spec_entries(w), storage_axes(spec_entries(w)))
    )


def storage_axes(entries: Sequence) -> list[tuple[str, ...]]:
    """The storage axes of each dimension: mesh axes that split a weight until it is used."""
    return [tuple(name for name in mesh_axes(entry) if AXES[name] != COMPUTE) for entry in entries]


def split_axis(x: jax.Array, axis: int, parts: int) -> jax.Array:
    """`x` with one axis reshaped into two, of sizes `parts` and size / `parts`; the first keeps the
    mesh axes."""
    shape = (*x.shape[:axis], parts, x.shape[axis] // parts, *x.shape[axis + 1 :])
    if jax.sharding.get_abstract_mesh().empty:
        return x.reshape(shape)
    entries = spec_entries(x)
    return jnp.reshape(
        x, shape, out_sharding=PartitionSpec(*entries[: axis + 1], None, *entries[axis + 1 :])
    )


def merge_axes(x: jax.Array, axis: int) -> jax.Array:
    """`x` with `axis` and the next one reshaped into one, which keeps the mesh axes of the
    first."""
    shape = (*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])
    if jax.sharding.get_abstract_mesh().empty:
        return x.reshape(shape)
    entries = spec_entries(x)
    return jnp.reshape(
        x, shape, out_sharding=PartitionSpec(*entries[: axis + 1], *entries[axis + 2 :])
    )


def by_part(function: Callable, shared: Any, *stacks: Any) -> Any:
    """`function(shared, *stacks)` of arrays that all devices have alike and of trees of stacked
    arrays, applied on each device to the part of the stacks that it has; to all of them where no
    mesh axis splits their first axis. Its results are stacked as the arrays are. A loop over a
    stack cannot go through other devices' parts."""
    names = () if unsharded() else mesh_axes(spec_entries(jax.tree.leaves(stacks)[0])[0])
    if not names:
        return function(shared, *stacks)
    part = PartitionSpec(as_entry(names))
    return jax.shard_map(
        function,
        in_specs=(PartitionSpec(), *[part] * len(stacks)),
        out_specs=part,
        axis_names=set(names),
        check_vma=False,
    )(shared, *stacks)


def cut_rows(x: jax.Array, count: int) -> jax.Array:
    """[B, ...] as [count, B / count, ...], with row b in part b mod count. Consecutive rows, which
    are on one device, go to different parts, so every part is spread over all devices without
    moving rows."""
    return jnp.swapaxes(split_axis(x, 0, x.shape[0] // count), 0, 1)


def join_rows(x: jax.Array) -> jax.Array:
    """The inverse of `cut_rows`: [count, B / count, ...] as [B, ...]."""
    return merge_axes(jnp.swapaxes(x, 0, 1), 0)


def result_spec(eqn: str, *operands: jax.Array) -> PartitionSpec:
    """The PartitionSpec of an einsum's result: each letter keeps the mesh axes that its operands
    have.

    ValueError where two letters of the result would be split over one mesh axis.
    """
    inputs, result = eqn.split("->")
    mesh_axes_of: dict[str, tuple[str, ...]] = {}
    for letters, operand in zip(inputs.split(","), operands):
        for letter, entry in zip(letters, spec_entries(operand)):
            # A letter that one operand has whole takes the other's sharding.
            mesh_axes_of[letter] = mesh_axes_of.get(letter) or mesh_axes(entry)
    owner: dict[str, str] = {}
    for letter in result:
        for name in mesh_axes_of[letter]:
            if name in owner:
                raise ValueError(
                    f"einsum {eqn!r}: {owner[name]!r} and {letter!r} are both split over "
                    f"mesh axis {name!r}"
                )
            owner[name] = letter
    return PartitionSpec(*(as_entry(mesh_axes_of[letter]) for letter in result))


def mesh_axes(entry: Any) -> tuple[str, ...]:
    """The mesh axes in an entry of a PartitionSpec, the inverse of `as_entry`."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def compute_axes(entry: Any) -> tuple[str, ...]:
    """The compute axes of an entry: mesh axes that split a weight in computation too."""
    return tuple(name for name in mesh_axes(entry) if AXES[name] == COMPUTE)
