"""What a compiled step says of a target's memory: measured by the compiler, so the same on every machine."""

from dataclasses import dataclass
from typing import Any


from research.fit.compile import compile_program, plan
from research.experiment import Experiment
from research.fit.targets import Target
from research.training.state import device_bytes

GIB = 2**30


@dataclass(frozen=True)
class Fit:
    """Bytes of one device, by what holds them, and of the host's memory for each device."""

    target: str
    params: int
    frozen: int
    optimizer: int
    gradients: int
    temporaries: int
    capacity: int | None
    host_bytes: int

    @property
    def total(self) -> int:
        """Bytes of a device at the step's peak."""
        return self.params + self.frozen + self.optimizer + self.gradients + self.temporaries

    @property
    def fits(self) -> bool:
        """Whether a device has as much; a target without a known capacity always has."""
        return self.capacity is None or self.total <= self.capacity

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        parts = ("params", "frozen", "optimizer", "gradients", "temporaries", "total", "capacity")
        return {
            "target": self.target,
            "fits": self.fits,
            "device_bytes": {name: getattr(self, name) for name in parts},
            "host_bytes": self.host_bytes,
        }

    def table(self) -> str:
        """The same for people."""
        rows = [
            ("parameters trained", self.params),
            ("parameters frozen", self.frozen),
            ("optimizer state", self.optimizer),
            ("gradients", self.gradients),
            ("activations and temporaries", self.temporaries),
            ("total of a device", self.total),
            *([("capacity", self.capacity)] if self.capacity is not None else []),
            *([("in host memory", self.host_bytes)] if self.host_bytes else []),
        ]
        lines = [f"{name:<28}{size / GIB:>10.2f} GiB" for name, size in rows]
        return "\n".join([f"{self.target}: {'fits' if self.fits else 'does not fit'}", *lines])


def measure(experiment: Experiment, target: Target, capacity_bytes: int | None = None) -> Fit:
    """Compiles the train step for the target; `capacity_bytes` instead of the device's own."""
    program = plan(experiment, target)
    memory = compile_program(program, target).memory_analysis()
    state = program.state
    held = {name: device_bytes(getattr(state, name)) for name in ("trainable", "frozen", "optimizer")}
    arguments = memory.argument_size_in_bytes
    total = arguments + memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    gradients = min(held["trainable"], memory.temp_size_in_bytes)
    # What the compiler adds to arrays so that they suit its tiles, the batch and the scalars are among the temporaries.
    rest = total - sum(held.values()) - gradients
    return Fit(
        target.name, held["trainable"], held["frozen"], held["optimizer"], gradients, rest,
        target.capacity_bytes if capacity_bytes is None else capacity_bytes,
        memory.host_temp_size_in_bytes + memory.host_argument_size_in_bytes,
    )  # fmt: skip
