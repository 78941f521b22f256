"""Builds a sharded array from slices: only the parts of this process's devices are in memory."""

import math
from collections.abc import Iterator, Sequence
from functools import cache

import jax
import numpy as np

_ALIGNMENT = 64  # bytes, of XLA's CPU buffers
_BLOCK_BYTES = 2 * 2**20  # of a turned copy: what fits a cache and malloc keeps, as measured
_COLUMNS = 16  # of 2 bytes fill half a cache line, the fastest of 16 to 512 as measured
Bounds = Sequence[tuple[int, int]]


class Shards:
    """An array with the shape, type and sharding of a ShapeDtypeStruct, filled slice by slice.
    Without a sharding it goes to the first device.

        shards = Shards(leaf)
        shards.put((3,), layer_3)      # a slice over leading axes
        array = shards.array()

    Threads may fill it together. Where a method takes the bounds `at`, (start, stop) on each axis
    of a slice, it is about that part of the slice.
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

    def wants(self, index: tuple[int, ...], at: Bounds | None = None) -> bool:
        """True if this process holds a part of the slice `[index]`."""
        return any(own.size for own, _ in self._shares(index, at))

    def put(self, index: tuple[int, ...], values: np.ndarray, at: Bounds | None = None) -> None:
        """Copies the slice `[index]` into the parts of this process's devices."""
        for own, theirs in self._shares(index, at):
            _copy(own, values[theirs])

    def memory(self, index: tuple[int, ...], at: Bounds) -> np.ndarray | None:
        """The memory of this process, uint8, where the slice's part `at` is; None where that is not
        one run of bytes."""
        shares = [own for own, _ in self._shares(index, at)]
        if len(shares) != 1 or not shares[0].flags.c_contiguous:
            return None
        return shares[0].reshape(-1).view(np.uint8)

    def array(self) -> jax.Array:
        """The filled array on its devices. On a CPU it is the memory that was filled."""
        # Every process makes the parts of its own devices; together they are the one global
        # array.
        arrays = [
            jax.device_put(self._buffers[part], device) for device, part in self._where.items()
        ]
        return jax.make_array_from_single_device_arrays(self._shape, self._sharding, arrays)

    def _shares(
        self, index: tuple[int, ...], at: Bounds | None
    ) -> Iterator[tuple[np.ndarray, tuple[slice, ...]]]:
        """What each buffer has of the slice: (a view of the buffer, where in the values that is).
        Buffers that have nothing of it are left out."""
        at = at or [(0, size) for size in self._shape[len(index) :]]
        for part, buffer in self._buffers.items():
            # `index` covers leading axes; the buffer begins at `start` of each.
            if not all(start <= i < stop for i, (start, stop) in zip(index, part)):
                continue
            inner: list[int | slice] = [i - start for i, (start, _) in zip(index, part)]
            theirs = []
            for (start, stop), (first, last) in zip(part[len(index) :], at, strict=True):
                low, high = max(start, first), min(stop, last)
                inner.append(slice(low - start, max(low, high) - start))
                theirs.append(slice(low - first, max(low, high) - first))
            # With the ellipsis a view, also of a single element.
            yield buffer[(*inner, ...)], tuple(theirs)


def _empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An array at an address from which XLA's CPU backend takes it without a copy: numpy aligns its
    own to 16 bytes, and the copy of a stack of layers is a large part of a model."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _copy(target: np.ndarray, values: np.ndarray) -> None:
    """target[...] = values, a few megabytes at a time where the values' own order is another: numpy
    walks in the target's order, and each column of a transposed matrix would evict the last from
    the cache before its neighbour is read (5 times slower for matrices of 2,048 and more)."""
    if target.ndim < 2 or values.strides[-1] == values.itemsize or not values.size:
        target[...] = values
        return
    # Along the axis that is outermost in memory, so that a block is one run of it.
    axis = max(range(values.ndim), key=lambda n: abs(values.strides[n]))
    rows = max(1, values.shape[axis] * _BLOCK_BYTES // values.nbytes)
    for start in range(0, values.shape[axis], rows):
        block = (*[slice(None)] * axis, slice(start, start + rows))
        _copy_turned(target[block], values[block])


def _copy_turned(target: np.ndarray, values: np.ndarray) -> None:
    device = _transposer()
    if device is not None and values.itemsize <= 4:
        # XLA transposes in registers, twice as fast as numpy in columns; as plain bits, for no
        # number may change. Types of 8 bytes it would narrow.
        bits = jax.device_put(values.view(f"u{values.itemsize}"), device)
        target[...] = np.asarray(bits).view(values.dtype)
        return
    for start in range(0, target.shape[-1], _COLUMNS):
        columns = np.s_[..., start : start + _COLUMNS]
        target[columns] = values[columns]


@cache
def _transposer() -> jax.Device | None:
    """The host as a device of JAX; None where a program has asked for other platforms alone."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
