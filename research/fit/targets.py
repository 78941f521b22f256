"""The hardware that a step is compiled for: devices that a compiler knows without their being
there."""

import difflib
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from research.devices.nvidia import NODE, description
from research.devices.slices import is_real, real_shapes, received
from research.devices.table import TARGETS

_COMPILERS = {"tpu": "libtpu", "gpu": "jax_cuda13_plugin"}
# There is no chip and no machine of a pod to ask about (libtpu complains of any that it cannot
# find, whatever is asked of it later), and another process may have the library open for the same
# purpose.
_ABSENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


@dataclass(frozen=True)
class Network:
    """Bytes/s that one device can receive over all its links together, in one direction: from its
    slice or node (`inside`) and from other slices or nodes (`between`)."""

    inside: float
    between: float


@dataclass(frozen=True)
class Target:
    """Devices that a step is compiled for.

    name            as it was asked for
    platform        "tpu", "gpu" or "cpu"
    kind            its name in `research.devices.table.TARGETS`, or "cpu"
    device_kind     JAX's name of each device; None for the CPU
    capacity_bytes  memory of a device; None for the CPU
    shape           of a slice its chips along each axis, of a node its cards
    slices          equal slices or nodes
    count           devices in all
    network         None for the CPU
    """

    name: str
    platform: str
    kind: str
    device_kind: str | None
    capacity_bytes: int | None
    shape: tuple[int, ...]
    slices: int
    count: int
    network: Network | None

    def devices(self) -> list[Any]:
        """The target's devices, ordered by slice or node. All but the CPU's are descriptions that
        programs are compiled for and that nothing can run on.

        ValueError where the compiler is not installed, or knows no such hardware.
        """
        if self.platform == "cpu":
            return _cpu_devices(self)
        # Looked for before JAX is imported, whose own error would not name the extra.
        self.refuse_without_compiler()
        import jax
        from jax.experimental import topologies

        try:
            # They matter while libtpu loads and describes the slice, and are taken back after.
            with _environment(_ABSENT if self.platform == "tpu" else {}):
                devices = topologies.get_topology_desc(**_topology(self)).devices
        except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
            # Only the first line says what is wrong; more may follow for the compiler's developers.
            package, reason = _COMPILERS[self.platform], str(error).splitlines()[0]
            raise ValueError(
                f"target {self.name!r} is unknown to the compiler in {package}: {reason}"
            ) from None
        return list(devices)  # in the order of slices and nodes

    def refuse_without_compiler(self) -> None:
        """ValueError, with the extra that brings it, where the compiler is not installed."""
        package = _COMPILERS.get(self.platform)
        if package and importlib.util.find_spec(package) is None:
            raise ValueError(
                f"target {self.name!r} wants the package {package}; pip install '.[fit]' brings it"
            )

    @property
    def compiler_options(self) -> dict[str, Any] | None:
        """Options for the compiler. On a GPU target it must not autotune: there is no card to try
        alternatives on."""
        return {"xla_gpu_autotune_level": 0} if self.platform == "gpu" else None


def parse_target(text: str) -> Target:
    """A target by its spelling; ValueError, with the nearest name or the shapes that there are, for
    another.

    "h100" is a card, "h100:8" a node of so many, "h100:4x8" four nodes of eight. "v5p:4x4x4" is a
    slice by its chips along each axis, "v5p:4x4x4@2" two of them. "cpu" is a device of this
    machine, "cpu:8" so many.
    """
    kind, _, shape = text.strip().partition(":")
    if kind == "cpu":
        return _cpu(text.strip(), shape or "1")
    if kind in TARGETS and TARGETS[kind].slices is not None:
        return _slices(text.strip(), kind, shape)
    if kind in TARGETS:
        return _nodes(text.strip(), kind, shape or "1")
    names = (*TARGETS, "cpu")
    prefixed = [name for name in names if kind and name.startswith(kind)]
    # A name that begins so is meant more likely than one with as many letters in common.
    nearest = (prefixed or difflib.get_close_matches(kind, names, n=1, cutoff=0.0))[0]
    raise ValueError(
        f"target {text!r} is unknown; the nearest is {nearest!r}; there are {', '.join(names)}"
    )


def parse_targets(text: str) -> list[Target]:
    """The targets of a list with commas, "v5e:4x4,v6e:4x4,h100:8"; ValueError where there is
    none."""
    targets = [parse_target(part) for part in text.split(",") if part.strip()]
    if not targets:
        raise ValueError(
            f"targets {text!r} name none; wanted one or more with commas, such as v5e:4x4,h100:8"
        )
    return targets


def _cpu(name: str, shape: str) -> Target:
    if not re.fullmatch(r"[1-9]\d*", shape):
        raise ValueError(f"target {name!r}: {shape!r} is no number of devices; write cpu or cpu:8")
    return Target(name, "cpu", "cpu", None, None, (int(shape),), 1, int(shape), None)


def _nodes(name: str, kind: str, shape: str) -> Target:
    """Cards of one node ("8") or of several ("2x8")."""
    card, sizes = TARGETS[kind], _sizes(shape)
    if len(sizes) not in (1, 2) or sizes[-1] > NODE:
        raise ValueError(
            f"target {name!r}: {shape!r} is no number of cards up to {NODE}, a node's, "
            f"nor NODESxCARDS; write {kind}, {kind}:{NODE} or {kind}:2x{NODE}"
        )
    # A single number is cards of one node.
    nodes, cards = (1, *sizes)[-2:]
    network = Network(card.inside, card.between)
    return Target(
        name, "gpu", kind, card.kind, card.memory, (cards,), nodes, nodes * cards, network
    )


def _slices(name: str, kind: str, text: str) -> Target:
    """A slice by its chips along each axis ("4x4x4"), or several of it ("4x4x4@2")."""
    tpu = TARGETS[kind]
    shape, at, number = text.partition("@")
    # "@2" is two equal slices, joined by the data centre's network.
    sizes, slices = _sizes(shape), _sizes(number) if at else (1,)
    if not is_real(tpu, sizes) or len(slices) != 1:
        raise ValueError(
            f"target {name!r}: {text!r} is no slice of {kind}; there are {real_shapes(tpu)}, "
            "with @N for N slices"
        )
    wires = tpu.slices
    # A chip that is two devices shares its network card between them.
    network = Network(received(tpu, sizes), wires.datacenter / wires.devices)
    count = math.prod(sizes) * wires.devices * slices[0]
    return Target(name, "tpu", kind, tpu.kind, tpu.memory, sizes, slices[0], count, network)


def _sizes(text: str) -> tuple[int, ...]:
    """(4, 8) of "4x8"; nothing for what is not of that form."""
    return tuple(map(int, text.split("x"))) if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text) else ()


def _topology(target: Target) -> dict[str, Any]:
    """What `jax.experimental.topologies` is asked for."""
    if target.platform == "gpu":
        # Partitions joined by the network, hosts of each, devices of each: a node is a partition
        # with one host.
        nodes = f"{target.slices}x1x{target.shape[0]}"
        return dict(
            platform="cuda",
            topology_name="",
            target_config=description(TARGETS[target.kind]),
            topology=nodes,
        )
    arguments: dict[str, Any] = {
        "platform": "tpu",
        "topology_name": target.kind + ":" + "x".join(map(str, target.shape)),
    }
    # By default a host has several chips, and no slice is a part of a host.
    if math.prod(target.shape) == 1:
        arguments["chips_per_host_bounds"] = (1, 1, 1)
    # Its two cores as one device, as Cloud TPU has them.
    if target.kind == "v4":
        arguments["chip_config_name"] = "megacore"
    return arguments | ({"num_slices": target.slices} if target.slices > 1 else {})


def _cpu_devices(target: Target) -> list[Any]:
    """This machine's own; JAX is told to make as many, where it has not started."""
    import jax

    # The flag and JAX's own option must not both be set.
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        try:
            jax.config.update(
                "jax_num_cpu_devices", max(target.count, jax.config.jax_num_cpu_devices)
            )
        except RuntimeError:
            pass  # it has started: there are as many as there are
    devices = jax.devices("cpu")
    if len(devices) < target.count:
        raise ValueError(
            f"target {target.name!r} wants {target.count} devices and this process has "
            f"{len(devices)}; set JAX_NUM_CPU_DEVICES={target.count} before it starts"
        )
    return devices[: target.count]


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Variables set where they are not, and taken back: a process started later must find its TPU
    as it is."""
    # A variable that the user has set is the user's and stays.
    new = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]
