"""Builds a sharded array from slices: only the parts of this process's devices are in memory."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import numpy as np

_ALIGNMENT = 64  # bytes, of XLA's CPU buffers
_COLUMNS = 16  # of 2 bytes fill half a cache line, the fastest of 16 to 512 as measured
_LARGE = 2**20  # bytes from which a second thread is worth its start
_WRITERS = ThreadPoolExecutor(2, "weights")


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
            part: _empty([stop - start for start, stop in part], leaf.dtype)
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
                own = values[tuple(slice(*bounds) for bounds in part[len(index) :])]
                _copy(buffer[(*inner, ...)], own)

    def array(self) -> jax.Array:
        """The filled array on its devices. On a CPU it is the memory that was filled."""
        # Every process makes the parts of its own devices; together they are the one global
        # array.
        arrays = [
            jax.device_put(self._buffers[part], device) for device, part in self._where.items()
        ]
        return jax.make_array_from_single_device_arrays(self._shape, self._sharding, arrays)


def _empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An array at an address from which XLA's CPU backend takes it without a copy: numpy aligns its
    own to 16 bytes, and the copy of a stack of layers is a large part of a model."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _copy(target: np.ndarray, values: np.ndarray) -> None:
    """target[...] = values, a few columns at a time where the values' own order is another: numpy
    walks in the target's order, and each column of a transposed matrix would evict the last from
    the cache before its neighbour is read (5 times slower for matrices of 2,048 and more)."""
    if target.ndim < 2 or values.strides[-1] == values.itemsize:
        target[...] = values
        return
    starts = range(0, target.shape[-1], _COLUMNS)
    if values.nbytes < _LARGE:
        _copy_columns(target, values, starts)
        return
    # Two threads, for a new page is cleared by the thread that first writes to it.
    halves = (starts[: len(starts) // 2], starts[len(starts) // 2 :])
    list(_WRITERS.map(partial(_copy_columns, target, values), halves))


def _copy_columns(target: np.ndarray, values: np.ndarray, starts: Sequence[int]) -> None:
    for start in starts:
        columns = np.s_[..., start : start + _COLUMNS]
        target[columns] = values[columns]


def _within(index: tuple[int, ...], part: tuple[tuple[int, int], ...]) -> bool:
    return all(start <= i < stop for i, (start, stop) in zip(index, part))
