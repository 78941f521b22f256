"""The slices of TPUs that can be had, and what their links carry."""

import math

from research.devices.device import Device, Slices

# Tables of cloud.google.com/tpu/docs, for a torus of two axes and of three; larger slices of the
# latter are made of whole cubes of 4x4x4.
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SMALL = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4")
_RING = 16  # chips along an axis of v5e and v6e that close a ring, the whole pod's
_CUBE = 4


def real_shapes(tpu: Device) -> str:
    """The slices of a generation, in words."""
    if tpu.torus == 2:
        return ", ".join(FLAT)
    return (
        f"{', '.join(SMALL)} and AxBxC of multiples of 4, A <= B <= C, "
        f"up to {_wires(tpu).most} chips"
    )


def is_real(tpu: Device, shape: tuple[int, ...]) -> bool:
    """Whether a slice of this shape, chips along each axis, can be had."""
    if "x".join(map(str, shape)) in (FLAT if tpu.torus == 2 else SMALL):
        return True
    cubes = tpu.torus == len(shape) == 3 and all(size and size % _CUBE == 0 for size in shape)
    return cubes and tuple(sorted(shape)) == shape and math.prod(shape) <= _wires(tpu).most


def received(tpu: Device, shape: tuple[int, ...]) -> float:
    """Bytes/s that a device can receive from the rest of its slice, through all links of its chip
    that lead somewhere.

    An axis that closes a ring gives two links: one of 16 chips where the torus has two axes; where
    it has three, every axis of a slice of whole cubes. A line gives one, for the chips at its ends
    have no more, and a collective is done when they are. Where a chip is two devices, each counts
    with all of its links: what both want comes once and crosses between them, six times as fast as
    over a link (cloud.google.com/tpu/docs/tpu7x). A single chip has no links: its only device waits
    for nobody (infinite).
    """
    wires = _wires(tpu)
    if math.prod(shape) == 1:
        return math.inf if wires.devices == 1 else 6 * wires.link
    cubes = all(size % _CUBE == 0 for size in shape)
    rings = [size >= _RING if tpu.torus == 2 else cubes for size in shape]
    links = sum(2 if ring else size > 1 for size, ring in zip(shape, rings))
    return links * wires.link


def _wires(tpu: Device) -> Slices:
    if tpu.slices is None:
        raise ValueError(f"{tpu.kind} has no row of how its chips are wired")
    return tpu.slices
