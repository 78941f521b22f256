"""Gathers and scattered sums of stored weights, inside `shard_map`.

A TPU slice is a torus. Its compiler has all-gathers and reduce-scatters along a line or over a
plane; asked for one over a whole slice it makes an all-reduce of full size instead (libtpu 0.0.42:
every gather of v5p:4x4x4 over 64 chips, every scatter of v5e:16x16 over 256, of v5p:2x2x2 over 8),
which moves twice the bytes and holds as much. So there they run in two stages, first within planes
or lines, then across them, which moves what one stage would.
"""

from collections.abc import Collection, Sequence

import jax
from jax import lax

from research.devices.table import torus


def stages(size: int, device_kind: str, devices: int = 0) -> tuple[int, ...]:
    """Sizes of the stages that a collective over `size` of all `devices` runs in, outer stage
    first; their product is `size`.

    The outer stage moves the most. Where the group is a whole slice of usual shape, it is a plane
    of a three-dimensional torus or a line of a plane.

    >>> stages(64, "TPU v5"), stages(512, "TPU v5p"), stages(256, "TPU v6 lite")
    ((16, 4), (64, 8), (16, 16))
    >>> stages(8, "TPU v5", devices=8), stages(8, "TPU v5", devices=64)
    ((4, 2), (8,))
    >>> stages(64, "NVIDIA H100 80GB HBM3")
    (64,)
    """
    axes = torus(device_kind)
    if axes is None:
        return (size,)
    # Small groups are no whole slice, and one stage serves them: below 16 chips of a torus of two
    # axes, below 32 of one of three. Three axes of two chips are the smallest whole one.
    cube = axes == 3 and size == devices
    if size < (8 if cube else 2 ** (axes + 2)):
        return (size,)
    # The largest divisor up to the root of the torus's size: the side of a square or a cube.
    line = max(n for n in range(1, size + 1) if size % n == 0 and n**axes <= size)
    return (size // line, line) if line > 1 else (size,)


def all_gather(x: jax.Array, name: str, axis: int) -> jax.Array:
    """The shards of `x` that the devices of a mesh axis hold, concatenated along `axis`."""
    # Inner stages first: they join neighbours, whose shards are contiguous.
    size, within = lax.axis_size(name), 1
    for parts in reversed(_stages(size)):
        x = lax.all_gather(
            x, name, axis=axis, tiled=True, axis_index_groups=_groups(size, parts, within)
        )
        within *= parts
    return x


def sum_scatter(x: jax.Array, name: str, axis: int) -> jax.Array:
    """The device's shard, along `axis`, of the sum of `x` over a mesh axis."""
    # Outer stages first, the reverse of `all_gather`: each leaves less for the next.
    size = within = lax.axis_size(name)
    for parts in _stages(size):
        within //= parts
        groups = _groups(size, parts, within)
        x = lax.psum_scatter(x, name, scatter_dimension=axis, tiled=True, axis_index_groups=groups)
    return x


def sum_to_place(
    x: jax.Array, stored: Sequence[Sequence[str]], summed: Collection[str]
) -> jax.Array:
    """The device's shard of the sum of `x` over the mesh axes `summed`.

    `stored` are the mesh axes that split each dimension of the result. Along an axis that is stored
    and not summed all devices have equal values, and each slices its own.
    """
    for axis, names in enumerate(stored):
        for name in names:
            if name in summed:
                x = sum_scatter(x, name, axis)
            else:
                # Nothing to add up along this axis, so nothing has to move either.
                size = x.shape[axis] // lax.axis_size(name)
                x = lax.dynamic_slice_in_dim(x, lax.axis_index(name) * size, size, axis)
    # Sorted, so that every process traces the same program.
    unscattered = tuple(
        name for name in sorted(summed) if not any(name in names for names in stored)
    )
    return lax.psum(x, unscattered) if unscattered else x


def _stages(size: int) -> tuple[int, ...]:
    mesh = jax.sharding.get_abstract_mesh()
    device = mesh.abstract_device
    return stages(size, "" if device is None else device.device_kind, mesh.size)


def _groups(size: int, parts: int, within: int) -> list[list[int]] | None:
    """Indices along a mesh axis in groups of `parts`, `within` apart; None for all in one."""
    if parts == size:
        return None
    # Members of a group lie `within` apart, and groups are interleaved in blocks of parts x within.
    starts = (block + i for block in range(0, size, parts * within) for i in range(within))
    return [[start + i * within for i in range(parts)] for start in starts]
