"""What is published of TPU generations: memory, links, and the slices that there are."""

import math
from dataclasses import dataclass

GIB = 2**30
GB = 1e9
GBIT = 1e9 / 8  # bytes/s


@dataclass(frozen=True)
class Generation:
    """A TPU chip and how its slices are wired. Bytes/s are of a chip and in one direction.

    `kind` is its devices' `device_kind`, of which it has `devices`. `memory_gib` is what a device
    has for programs. `link` is one link of the two that a chip has along each of `axes` axes,
    `datacenter` its share of its host's network cards. A slice has at most `most` chips.
    """

    kind: str
    devices: int
    memory_gib: float
    axes: int
    link: float
    datacenter: float
    most: int


# Memory is what libtpu 0.0.42 says it has when a program wants more ("exceeds available HBM
# (15.75G)"): the sheet's 16, 32, 95, 192 and 32 GiB less what the runtime keeps. Half of a chip is
# a device on tpu7x; the two halves of v4 are joined ("megacore"), as a Cloud TPU has them. Links:
# the "bidirectional inter-chip interconnect bandwidth per chip" of cloud.google.com/tpu/docs/v5e
# (400 GB/s), v5p (1200), v6e (800) and tpu7x (1200), which counts both directions of 4 or 6 links;
# v4 has six of 50 GB/s (arXiv:2304.01433, table 4). The same as the one-way figures of
# jax-ml.github.io/scaling-book/tpus within a tenth. Network cards: 2 x 100 Gbit/s for 8 chips
# (v5e), 50 Gbit/s a chip (v5p), 100 (v6e, tpu7x), of the same pages; v4 is taken to have what v5p
# has, the 25 GB/s a host of the scaling book. A chip's share assumes that all of a host's chips
# talk at once, as they do in a collective over slices.
GENERATIONS = {
    "v4": Generation("TPU v4", 1, 30.75, 3, 50 * GB, 50 * GBIT, 4096),
    "v5e": Generation("TPU v5 lite", 1, 15.75, 2, 50 * GB, 25 * GBIT, 256),
    "v5p": Generation("TPU v5", 1, 95.74, 3, 100 * GB, 50 * GBIT, 6144),
    "v6e": Generation("TPU v6 lite", 1, 31.25, 2, 100 * GB, 100 * GBIT, 256),
    "tpu7x": Generation("TPU7x", 2, 94.75, 3, 100 * GB, 100 * GBIT, 9216),
}
# Those pages' tables, for two axes and for three, of which larger slices are made of whole cubes of
# 4x4x4.
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SMALL = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4")
_RING = 16  # chips along an axis of v5e and v6e that close a ring, the whole pod's
_CUBE = 4


def real_shapes(generation: Generation) -> str:
    """The slices that can be had, in words."""
    if generation.axes == 2:
        return ", ".join(FLAT)
    return f"{', '.join(SMALL)} and AxBxC of multiples of 4, A <= B <= C, up to {generation.most} chips"


def is_real(generation: Generation, shape: tuple[int, ...]) -> bool:
    """Whether a slice of this shape can be had."""
    if "x".join(map(str, shape)) in (FLAT if generation.axes == 2 else SMALL):
        return True
    cubes = generation.axes == len(shape) == 3 and all(size and size % _CUBE == 0 for size in shape)
    return cubes and tuple(sorted(shape)) == shape and math.prod(shape) <= generation.most


def received(generation: Generation, shape: tuple[int, ...]) -> float:
    """Bytes/s that a device can receive from the rest of its slice, through all links of its chip
    that lead somewhere.

    An axis that closes a ring gives two links: one of 16 chips where there are two axes, of three
    every axis of a slice of whole cubes. A line gives one, for the chips at its ends have no more,
    and a collective is done when they are. Two devices of a chip count with all its links each:
    what both want comes once and crosses between them, six times as fast as over a link
    (cloud.google.com/tpu/docs/tpu7x). A single chip has no links: its only device waits for nobody
    (infinite).
    """
    if math.prod(shape) == 1:
        return math.inf if generation.devices == 1 else 6 * generation.link
    cubes = all(size % _CUBE == 0 for size in shape)
    rings = [size >= _RING if generation.axes == 2 else cubes for size in shape]
    links = sum(2 if ring else size > 1 for size, ring in zip(shape, rings))
    return links * generation.link
