"""What a compiled step needs of a target and what bounds its speed: the answer of `research.fit`.

It follows from the program and the compiler's version alone, so it is the same on every machine;
only the seconds of the compile are those of the machine that compiled.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from research.fit.roofline import Roofline

GIB = 2**30
# In the order of the pictures: what persists between steps first, then what a step makes.
PARTS = ("params", "frozen", "optimizer", "gradients", "temporaries")
# Fields of `Fit` that its JSON has under the same name at the top.
_SAME_IN_JSON = (
    "target", "step", "mesh", "host_bytes", "tokens", "recompute_ratio", "collective_bytes",
    "memory_bytes", "peak_flops", "chips", "price_per_hour", "notes", "kernels",
    "compile_seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """A step on a target. Bytes are of one device, FLOPs and tokens of a step over all devices.

    target            its spelling, such as "v5p:4x4x4"
    step              "train", or "decode": one token a row
    mesh              devices along each mesh axis
    params to         what is in a device's memory at the step's peak; of decoding `optimizer` is
    temporaries       the key-value cache
    capacity          what the device has; None on a CPU
    host_bytes        what is offloaded to the host
    model_flops       what the model needs; `hardware_flops` is what the program executes
    recompute_ratio   executed FLOPs over three forwards; None of decoding
    collective_bytes  operand bytes by kind of collective; `least_bytes` is what the sharding needs
    memory_bytes      read and written in the device's memory
    chips             chips or cards in all; `price_per_hour` is the price of one
    compile_seconds   of tracing, lowering and compiling, where it was compiled

    libtpu gives up a program that is larger than the device; then everything that is read from the
    compiled form is None.
    """

    target: str
    step: str
    mesh: dict[str, int]
    params: int
    frozen: int
    optimizer: int
    gradients: int
    temporaries: int
    capacity: int | None
    host_bytes: int
    tokens: int
    model_flops: float
    hardware_flops: float
    recompute_ratio: float | None
    collective_bytes: dict[str, int] | None
    least_bytes: int | None
    memory_bytes: int | None
    roofline: Roofline
    peak_flops: float | None
    chips: int
    price_per_hour: float | None = None
    notes: list[str] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)
    compile_seconds: dict[str, float] = field(default_factory=dict, compare=False)

    @property
    def total(self) -> int:
        """Bytes of a device at the step's peak."""
        return sum(getattr(self, part) for part in PARTS)

    @property
    def fits(self) -> bool:
        """Whether `total` is within the capacity; always true where no capacity is known."""
        return self.capacity is None or self.total <= self.capacity

    @property
    def collective_ratio(self) -> float | None:
        """Operand bytes of all collectives over the least; None where none are needed."""
        if self.collective_bytes is None or not self.least_bytes:
            return None
        return sum(self.collective_bytes.values()) / self.least_bytes

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens of a second at most, which the roofline bounds; None on a CPU."""
        return self.tokens / self.roofline.seconds if self.roofline.seconds else None

    @property
    def mfu(self) -> float | None:
        """Model FLOP utilization (arXiv:2204.02311, appendix B), at most."""
        seconds = self.roofline.seconds
        if not self.peak_flops or not seconds:
            return None
        return self.model_flops / (self.peak_flops * seconds)

    @property
    def cost_per_billion_tokens(self) -> float | None:
        """In the unit of `price_per_hour`, which is that of one chip or card; at least."""
        if self.price_per_hour is None or self.tokens_per_second is None:
            return None
        # Price of a second of all chips, times the seconds of 1e9 tokens.
        return self.price_per_hour * self.chips / 3600 * 1e9 / self.tokens_per_second

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        times = self.roofline
        return {
            "target": self.target,
            "fits": self.fits,
            "device_bytes": {part: getattr(self, part) for part in (*PARTS, "total", "capacity")},
            "host_bytes": self.host_bytes,
            "flops": {"model": self.model_flops, "hardware": self.hardware_flops},
            "recompute_ratio": self.recompute_ratio,
            "collective_bytes": self.collective_bytes,
            "collective_ratio": self.collective_ratio,
            "step_seconds_bound": times.seconds,
            "tokens_per_second_bound": self.tokens_per_second,
            "mfu_bound": self.mfu,
            "roofline": {**asdict(times), "bound": times.bound},
            "cost_per_billion_tokens": self.cost_per_billion_tokens,
            "step": self.step,
            "mesh": self.mesh,
            "tokens": self.tokens,
            "least_collective_bytes": self.least_bytes,
            "memory_bytes": self.memory_bytes,
            "peak_flops": self.peak_flops,
            "chips": self.chips,
            "price_per_hour": self.price_per_hour,
            "notes": self.notes,
            "kernels": self.kernels,
            "compile_seconds": self.compile_seconds,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Fit":
        """The inverse of `to_json`. KeyError, TypeError where the values are of something else."""
        device_bytes = values["device_bytes"]
        # Bounds and ratios in the JSON follow from these fields and are computed anew.
        times = {name: values["roofline"][name] for name in ("compute", "memory", "network")}
        return cls(
            **{name: values[name] for name in _SAME_IN_JSON},
            **{name: device_bytes[name] for name in (*PARTS, "capacity")},
            model_flops=values["flops"]["model"],
            hardware_flops=values["flops"]["hardware"],
            least_bytes=values["least_collective_bytes"],
            roofline=Roofline(**times),
        )
