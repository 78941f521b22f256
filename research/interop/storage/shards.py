"""An array under way from storage to its devices: only the parts that this process's devices hold
are in memory."""

import jax
import numpy as np


class Shards:
    """The parts of an array of a ShapeDtypeStruct's shape, type and sharding, filled slice by
    slice; without a sharding it goes to the first device."""

    def __init__(self, leaf: jax.ShapeDtypeStruct):
        self._shape = leaf.shape
        self._sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        self._where = {
            device: tuple(
                (part.start or 0, part.stop or size) for part, size in zip(index, leaf.shape)
            )
            for device, index in self._sharding.addressable_devices_indices_map(leaf.shape).items()
        }
        self._held = {
            part: np.empty([stop - start for start, stop in part], leaf.dtype)
            for part in set(self._where.values())
        }

    def wants(self, index: tuple[int, ...]) -> bool:
        """Whether a part of the slice `[index]` lies here."""
        return any(_within(index, part) for part in self._held)

    def put(self, index: tuple[int, ...], values: np.ndarray) -> None:
        """Takes the slice `[index]`."""
        for part, held in self._held.items():
            if _within(index, part):
                inner = tuple(i - start for i, (start, _) in zip(index, part))
                held[inner] = values[tuple(slice(*bounds) for bounds in part[len(index) :])]

    def array(self) -> jax.Array:
        """What was put, on its devices."""
        arrays = [jax.device_put(self._held[part], device) for device, part in self._where.items()]
        return jax.make_array_from_single_device_arrays(self._shape, self._sharding, arrays)


def _within(index: tuple[int, ...], part: tuple[tuple[int, int], ...]) -> bool:
    return all(start <= i < stop for i, (start, stop) in zip(index, part))
