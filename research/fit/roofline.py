"""The least time of a step: what its arithmetic, its memory traffic and its network traffic take at
the published peaks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from research.devices.table import DEVICES
from research.fit.collectives import Collective
from research.fit.targets import Target


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step on each resource alone; they overlap at best, so the longest is a bound
    (arXiv:1805.12276).

    None where nothing is published of the device, as of a CPU.
    """

    compute: float | None = None
    memory: float | None = None
    network: float | None = None

    @property
    def seconds(self) -> float | None:
        """The least a step can take."""
        return None if self.compute is None else max(self._times.values())

    @property
    def bound(self) -> str | None:
        """The resource that takes longest."""
        return None if self.compute is None else max(self._times, key=self._times.get)

    @property
    def _times(self) -> dict[str, float]:
        return {"compute": self.compute, "memory": self.memory, "network": self.network}


def roofline(
    target: Target, flops: Mapping[str, float], memory_bytes: float, found: Sequence[Collective]
) -> Roofline:
    """The roofline of a step.

    `flops` are by type, over all devices; `memory_bytes` are moved by one device, and `found` are
    the collectives that it takes part in.
    """
    chip = DEVICES.get(target.device_kind) if target.device_kind else None
    if chip is None:
        return Roofline(None, None, None)
    # Products of different types run one after another on the same units.
    compute = sum(count / peak(chip.flops, dtype) for dtype, count in flops.items()) / target.count
    return Roofline(compute, memory_bytes / chip.memory_bandwidth, network_seconds(target, found))


def peak_flops(target: Target, dtype: str) -> float | None:
    """FLOP/s of all devices together for products in a type; None where no peak is published, as
    for a CPU."""
    chip = DEVICES.get(target.device_kind)
    return None if chip is None else target.count * peak(chip.flops, dtype)


def peak(peaks: Mapping[str, float], dtype: str) -> float:
    """FLOP/s of products in a type as XLA makes them by default: of float32 in one bfloat16 pass on
    a TPU and as tfloat32 on a card that has it. A type without units of its own counts as the
    fastest wider one, which is kind to it."""
    # XLA's default precision of float32 products: see jax.lax.Precision.
    if dtype == "float32":
        dtype = "tfloat32"
    # Old cards multiply no bfloat16; XLA computes it there in float16's or float32's units.
    named = peaks.get("float8" if dtype.startswith("float8") else dtype)
    return named or peaks.get("bfloat16") or peaks["float16"]


def network_seconds(target: Target, found: Sequence[Collective]) -> float:
    """Time of all collectives at the network's full rate, what leaves a slice or a node at the rate
    between them."""
    # Links inside a slice and the network between slices carry at the same time, so the longer of
    # the two counts.
    inside = between = 0.0
    per_slice = target.count // target.slices
    for collective in found:
        # Received bytes: a device sends at the same time, over the other direction of its links.
        received = collective.wire_bytes * collective.times
        # Devices are numbered slice by slice.
        crosses = any(
            len({device // per_slice for device in group}) > 1 for group in collective.groups
        )
        if crosses:
            between += received / max(1, _members_inside(collective, per_slice))
        inside += received
    return max(inside / target.network.inside, between / target.network.between if between else 0.0)


def _members_inside(collective: Collective, per_slice: int) -> int:
    """Devices of a group in one slice: a hierarchical collective sends across slices only what one
    of them has not."""
    group = collective.groups[0]
    return sum(1 for device in group if device // per_slice == group[0] // per_slice)
