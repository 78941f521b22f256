"""Builds a sharded array from slices: only the parts of this process's devices are in memory."""

import jax
import numpy as np


class Shards:
    """An array with the shape, type and sharding of a ShapeDtypeStruct, filled slice by slice.
    Without a sharding it goes to the first device.

        shards = Shards(leaf)
        shards.put((3,), layer_3)      # a slice over leading axes
        array = shards.array()
    """

    def __init__(self, leaf: jax.ShapeDtypeStruct):
        self._shape = leaf.shape
        self._sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        # (start, stop) of each axis, for each device of this process; an unsplit axis is
        # slice(None).
        self._where = {
            device: tuple(
                (part.start or 0, part.stop or size) for part, size in zip(index, leaf.shape)
            )
            for device, index in self._sharding.addressable_devices_indices_map(leaf.shape).items()
        }
        # Replicas on several local devices share one buffer.
        self._buffers = {
            part: np.empty([stop - start for start, stop in part], leaf.dtype)
            for part in set(self._where.values())
        }

    def wants(self, index: tuple[int, ...]) -> bool:
        """True if this process holds a part of the slice `[index]`."""
        return any(_within(index, part) for part in self._buffers)

    def put(self, index: tuple[int, ...], values: np.ndarray) -> None:
        """Copies the slice `[index]` into the parts of this process's devices."""
        for part, buffer in self._buffers.items():
            if _within(index, part):
                # `index` covers leading axes; the buffer begins at `start` of each.
                inner = tuple(i - start for i, (start, _) in zip(index, part))
                buffer[inner] = values[tuple(slice(*bounds) for bounds in part[len(index) :])]

    def array(self) -> jax.Array:
        """The filled array on its devices."""
        # Every process makes the parts of its own devices; together they are the one global
        # array.
        arrays = [
            jax.device_put(self._buffers[part], device) for device, part in self._where.items()
        ]
        return jax.make_array_from_single_device_arrays(self._shape, self._sharding, arrays)


def _within(index: tuple[int, ...], part: tuple[tuple[int, int], ...]) -> bool:
    return all(start <= i < stop for i, (start, stop) in zip(index, part))
