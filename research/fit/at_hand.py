"""Whether a run fits the device at hand, by estimate and before anything is allocated: what
`research.train` says before its first step, and chooses where its config leaves that open."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from research.experiment.config import Experiment
from research.fit.estimate import estimate
from research.fit.lightest import settled
from research.fit.report import GIB
from research.fit.search import changes
from research.fit.targets import Target
from research.fit.weigh import weigh
from research.parallel.mesh import parse_mesh
from research.run.override import flags
from research.run.settled import Prediction

# What a process of Python, JAX and XLA's compiler takes beside a run's arrays: half a GiB for the
# quickstart, and one for SmolLM2's 30 layers while they are compiled.
PROCESS = 1 * GIB
PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def predict(experiment: Experiment, devices: list[Any] | None = None) -> Prediction:
    """What a run chooses on the devices at hand (`lightest.settled`), and a line of what a device
    then needs, by estimate, and what is free.

    The line also says what to set where that is not enough, and is "" where either is not known.
    `devices` are JAX's own unless given. On CPUs bytes are those of the process, whose devices
    share the machine's memory.
    """
    if devices is None:
        devices = jax.devices() if parse_mesh(experiment.mesh) else jax.devices()[:1]
    # One device speaks for all, they are alike and hold equal shares; it is one of this process,
    # for only those tell what is free.
    mine = [one for one in devices if one.process_index == jax.process_index()]
    free = free_bytes(mine[0]) if mine else None
    target = _target(devices)
    try:
        weights = weigh(experiment, target)
        # What a checkpoint holds is copied while the next steps go on.
        copied = weights.trained + weights.moments
        room = None if free is None else _room(free, copied, devices)
        experiment = settled(experiment, target, room, weights)
        total = estimate(experiment, target, weights).total
    except ValueError:  # a mesh or a batch that does not fit: the run itself says so
        return Prediction(experiment)
    if free is None:
        return Prediction(experiment)
    needed = _needed(total, copied, devices)
    place = "this machine" if target.platform == "cpu" else f"each {devices[0].device_kind}"
    line = f"needs about {needed / GIB:.1f} GiB of {place}, {free / GIB:.1f} GiB are free"
    if needed <= free:
        return Prediction(experiment, line)
    remedy = _remedy(experiment, copied, devices, free)
    warning = f"WARNING: {line}; it will most likely not fit: {remedy}"
    return Prediction(experiment, warning, fits=False)


def free_bytes(device: Any) -> int | None:
    """Bytes that programs can still allocate on a device; on a CPU those of this machine and of the
    control groups that this process is in. None where nobody tells."""
    if device.platform != "cpu":
        # JAX preallocates a part of a card; `bytes_limit` is that part, beyond which it cannot
        # go.
        stats = device.memory_stats() or {}
        return (
            stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else None
        )
    return min([*_machine(PROC), *_groups(PROC, CGROUPS)], default=None)


def _target(devices: list[Any]) -> Target:
    """The devices as a target of `estimate`, which then asks for memory alone: no device_kind, so
    no peaks and no network."""
    kind = devices[0].platform
    count = len(devices)
    return Target(f"{kind}:{count}", kind, kind, None, None, (count,), 1, count, None)


def _needed(total: int, copied: int, devices: list[Any]) -> float:
    """Bytes of what `free_bytes` counts: a CPU's copies for a save lie beside its arrays."""
    if devices[0].platform != "cpu":
        return total
    return (total + copied) * _sharing(devices) + PROCESS


def _room(free: int, copied: int, devices: list[Any]) -> float:
    """The largest total of a device for which `_needed` is within `free`."""
    if devices[0].platform != "cpu":
        return free
    return (free - PROCESS) / _sharing(devices) - copied


def _sharing(devices: list[Any]) -> int:
    """How many fake CPU devices share the memory of a process, so that their needs add up."""
    return sum(device.process_index == devices[0].process_index for device in devices)


def _remedy(experiment: Experiment, copied: int, devices: list[Any], free: int) -> str:
    """The first single change, the mildest first, with which the estimate fits."""
    for settings, guess in changes(experiment, _target(devices)):
        needed = _needed(guess.total, copied, devices)
        if needed <= free:
            return f"set {flags(settings)} (about {needed / GIB:.1f} GiB)"
    adapters = "" if experiment.tune.method != "full" else "train adapters (method=lora), or "
    return f"{adapters}take a smaller model, shorter texts and a smaller batch, or more memory"


def _machine(proc: Path) -> Iterator[int]:
    """The machine's free memory, caches that it can drop included; nothing but on Linux."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        # In kB; unlike MemFree it counts file caches that the kernel would give up.
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _groups(proc: Path, root: Path) -> Iterator[int]:
    """What each control group that limits this process's memory leaves, its parents' included."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":  # version 2: one tree for all controllers
            tree, limit, usage = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            tree = root / "memory"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # A container may see its own group as the root, so the root counts too.
        folder = tree / path.strip("/")
        for group in (folder, *folder.parents):
            left = _left(group, limit, usage)
            if left is not None:
                yield left
            if group == tree:
                break


def _left(group: Path, limit: str, usage: str) -> int | None:
    """Bytes below a group's limit, with file caches that the kernel drops before it kills; None for
    a group without a limit."""
    try:
        most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
        stat = dict(re.findall(r"(\w+) (\d+)", (group / "memory.stat").read_text()))
    except (OSError, ValueError):
        return None
    # "max" is version 2's word for no limit, and version 1 has a number of pages near 2**63.
    if not most.isdecimal() or int(most) >= 2**60:
        return None
    return max(0, int(most) - used + int(stat.get("inactive_file", 0)))
