"""The device mesh of a run, from a string such as "fsdp:4,tensor:2"."""

import math
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding

from research.parallel.axes import MESH_AXES, AxisRules, partition


def parse_mesh(text: str) -> dict[str, int]:
    """Sizes by axis name. At most one may be -1, which stands for the remaining devices; axes that
    are not named have size 1.

    >>> parse_mesh("fsdp:-1,tensor:2")
    {'fsdp': -1, 'tensor': 2}
    """
    sizes: dict[str, int] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, number = part.partition(":")
        if name not in MESH_AXES:
            raise ValueError(
                f"mesh={text!r} names the axis {name!r}; choose from {', '.join(MESH_AXES)}"
            )
        if name in sizes:
            raise ValueError(f"mesh={text!r} names the axis {name!r} twice")
        try:
            sizes[name] = int(number)
        except ValueError:
            raise ValueError(f"mesh={text!r}: {part!r} is not AXIS:SIZE, such as fsdp:4") from None
        if sizes[name] < 1 and sizes[name] != -1:
            raise ValueError(
                f"mesh={text!r}: a size must be positive, or -1 for the remaining devices"
            )
    if list(sizes.values()).count(-1) > 1:
        raise ValueError(f"mesh={text!r}: only one axis can be -1, the remaining devices")
    return sizes


def mesh_shape(text: str, devices: int) -> tuple[int, ...]:
    """Sizes in the order of MESH_AXES for this number of devices; ValueError where they do not
    multiply to it."""
    sizes = parse_mesh(text)
    # What is left after the fixed sizes goes to the axis of -1.
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if devices % fixed or (-1 not in sizes.values() and fixed != devices):
        raise ValueError(
            f"mesh={text!r} takes {fixed} devices and there are {devices}; "
            "set config.mesh to sizes whose product is that number, or one of them to -1"
        )
    return tuple(
        devices // fixed if sizes.get(name) == -1 else sizes.get(name, 1) for name in MESH_AXES
    )


def make_mesh(text: str, devices: list | None = None) -> Mesh:
    """A mesh that names all of MESH_AXES, with explicit axes.

    `devices` are all of this program's unless given. An empty `text` takes the first alone.
    """
    if devices is None:
        devices = jax.devices() if parse_mesh(text) else jax.devices()[:1]
    shape = mesh_shape(text, len(devices))
    explicit = (AxisType.Explicit,) * len(MESH_AXES)
    return Mesh(_arranged(shape, devices), MESH_AXES, axis_types=explicit)


def _arranged(shape: tuple[int, ...], devices: list) -> np.ndarray:
    """Devices as an array of this shape.

    On TPUs mesh axes follow the axes of the torus, and several slices lie along the outermost mesh
    axis where it is a multiple of them. Elsewhere devices stay in their order, which is that of
    nodes.
    """
    # Only TPUs have slices; every other device counts as one of slice 0.
    slices: dict[int, list] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    if devices[0].platform != "tpu" or shape[0] % len(slices):
        return np.array(devices).reshape(shape)
    # What crosses slices is slow: only the outermost axis does, with a gradient sum a step.
    inside = (shape[0] // len(slices), *shape[1:])
    return np.concatenate(
        [
            create_device_mesh(inside, part, allow_split_physical_axes=True)
            for _, part in sorted(slices.items())
        ]
    )


def row_part(mesh: Mesh, rules: AxisRules, global_batch: int) -> tuple[int, int]:
    """(index, count): of `count` equal parts of a batch's rows, one after the other, the one that
    this process reads. Processes whose devices share rows, along an axis such as tensor that does
    not split the batch, read the same part.

    ValueError if the devices of the process do not hold one such part.
    """
    sharding = batch_sharding((global_batch,), mesh, rules)
    held = set()
    for place in sharding.addressable_devices_indices_map((global_batch,)).values():
        rows = place[0] if place else slice(None)
        held.add(rows.indices(global_batch)[:2])
    first, end = min(start for start, _ in held), max(stop for _, stop in held)
    size = end - first
    # Each set of rows counts once: devices that share rows hold the same ones.
    if sum(stop - start for start, stop in held) != size or global_batch % size or first % size:
        raise ValueError(
            f"the mesh gives process {jax.process_index()} rows of a batch that do not lie "
            "together; set config.mesh and config.axes so that the axes that split a batch come "
            "before the others, and a multiple of each process's devices is on each"
        )
    return first // size, global_batch // size


def place_batch(
    batch: dict[str, np.ndarray], mesh: Mesh, rules: AxisRules, global_batch: int
) -> dict[str, jax.Array]:
    """This process's rows of a batch, its `row_part`, as global arrays of `global_batch` rows, see
    `batch_sharding`."""
    index, count = row_part(mesh, rules, global_batch)
    first = index * (global_batch // count)
    arrays: dict[str, jax.Array] = {}
    for name, rows in batch.items():
        shape = (global_batch, *rows.shape[1:])
        sharding = batch_sharding(shape, mesh, rules)

        # A device asks for its part by places in the global array.
        def _of_device(place: Any, rows: np.ndarray = rows) -> np.ndarray:
            start, stop, _ = place[0].indices(global_batch)
            return rows[(slice(start - first, stop - first), *place[1:])]

        arrays[name] = jax.make_array_from_callback(shape, sharding, _of_device)
    return arrays


def batch_sharding(shape: tuple[int, ...], mesh: Mesh, rules: AxisRules) -> NamedSharding:
    """Where a field of a batch lives, [B, T, ...]: split by the logical axes "batch" and
    "length"."""
    # Further dimensions of a field stay whole, which "vector" says.
    axes = ("batch", "length")[: len(shape)] + ("vector",) * (len(shape) - 2)
    return NamedSharding(mesh, partition(axes, shape, mesh, rules))
