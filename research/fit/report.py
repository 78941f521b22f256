"""What a compiled step says of a target: memory by the compiler, arithmetic by the program, traffic
by what was compiled.

Everything follows from the program and the compiler's version, so it is the same on every machine.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import jax

from research.experiment.config import Experiment
from research.fit import flops as counts
from research.fit.collectives import collective_bytes, collectives
from research.fit.compile import plan, trace
from research.fit.decode import plan_decode
from research.fit.hlo.text import parse
from research.fit.minimal_traffic import least_bytes
from research.fit.oom import required_bytes
from research.fit.roofline import Roofline, peak_flops, roofline
from research.fit.targets import Target
from research.fit.traffic import memory_bytes
from research.training.flops import decode_flops
from research.training.state import device_bytes

GIB = 2**30
PARTS = ("params", "frozen", "optimizer", "gradients", "temporaries")


@dataclass(frozen=True)
class Fit:
    """A step on a target. Bytes are of one device, FLOPs and tokens of a step over all devices,
    seconds of a step.

    What is None is not known: the capacity and peaks of a CPU, and of a program that its compiler
    gave up, being larger than the device, all that is read from the compiled form. `least_bytes` is
    what the sharding needs of collectives.
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

    @property
    def total(self) -> int:
        """Bytes of a device at the step's peak."""
        return sum(getattr(self, part) for part in PARTS)

    @property
    def fits(self) -> bool:
        """Whether a device has as much; a target without a known capacity always has."""
        return self.capacity is None or self.total <= self.capacity

    @property
    def collective_ratio(self) -> float | None:
        """Operand bytes of all collectives over the least; None where none are needed."""
        if self.collective_bytes is None or not self.least_bytes:
            return None
        return sum(self.collective_bytes.values()) / self.least_bytes

    @property
    def tokens_per_second(self) -> float | None:
        """At most."""
        return self.tokens / self.roofline.seconds if self.roofline.seconds else None

    @property
    def mfu(self) -> float | None:
        """Model FLOP utilization (arXiv:2204.02311, appendix B), at most."""
        seconds = self.roofline.seconds
        return (
            self.model_flops / (self.peak_flops * seconds) if self.peak_flops and seconds else None
        )

    @property
    def cost_per_billion_tokens(self) -> float | None:
        """In the unit of `price_per_hour`, which is that of one chip or card; at least."""
        if self.price_per_hour is None or self.tokens_per_second is None:
            return None
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
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Fit":
        """The inverse of `to_json`. KeyError, TypeError where the values are of something else."""
        held, same = (
            values["device_bytes"],
            (
                "target",
                "step",
                "mesh",
                "host_bytes",
                "tokens",
                "recompute_ratio",
                "collective_bytes",
                "memory_bytes",
                "peak_flops",
                "chips",
                "price_per_hour",
                "notes",
            ),
        )
        times = {name: values["roofline"][name] for name in ("compute", "memory", "network")}
        return cls(
            **{name: values[name] for name in same},
            **{name: held[name] for name in (*PARTS, "capacity")},
            model_flops=values["flops"]["model"],
            hardware_flops=values["flops"]["hardware"],
            least_bytes=values["least_collective_bytes"],
            roofline=Roofline(**times),
        )

    def table(self) -> str:
        """The same for people."""
        lines = [f"{self.target}: {self.verdict()}", *self.notes]
        axes = (
            ", ".join(f"{name}:{size}" for name, size in self.mesh.items() if size > 1)
            or "one device"
        )
        lines += [_row("mesh", axes), _row("tokens a step", f"{self.tokens:,}")]
        names = (
            "parameters trained",
            "parameters frozen",
            "cache" if self.step == "decode" else "optimizer state",
            "gradients",
            "activations and temporaries",
        )
        lines += [
            _row(name, _gib(getattr(self, part)))
            for name, part in zip(names, PARTS)
            if getattr(self, part)
        ]
        lines.append(_row("total of a device", _gib(self.total)))
        lines += [_row("capacity", _gib(self.capacity))] if self.capacity is not None else []
        lines += [_row("in host memory", _gib(self.host_bytes))] if self.host_bytes else []
        lines.append(_row("FLOPs of the model", f"{self.model_flops:.4g}"))
        ratio = f", {self.recompute_ratio:.3f} of 3 forwards" if self.recompute_ratio else ""
        lines.append(_row("FLOPs of the hardware", f"{self.hardware_flops:.4g}{ratio}"))
        for kind, size in sorted((self.collective_bytes or {}).items()):
            lines.append(_row(kind, _gib(size)))
        if self.collective_ratio is not None:
            lines.append(_row("collectives, of the least", f"{self.collective_ratio:.3f}"))
        return "\n".join([*lines, *self._time_rows()])

    def verdict(self) -> str:
        """In a few words."""
        if self.capacity is None:
            return f"takes {_gib(self.total)}"
        return f"{'fits' if self.fits else 'does not fit'}: {_gib(self.total)} of {_gib(self.capacity)}"

    def _time_rows(self) -> list[str]:
        times = self.roofline
        if times.seconds is None:
            return []
        rows = []
        for name in ("compute", "memory", "network"):
            seconds = getattr(times, name)
            if seconds is not None:
                rows.append(
                    _row(
                        f"{name} at its peak",
                        f"{seconds:.4g} s{'  <- bounds' if name == times.bound else ''}",
                    )
                )
        rows.append(
            _row(
                "bounds, not promises",
                f"{self.tokens_per_second:,.0f} tokens/s, MFU {self.mfu:.1%}",
            )
        )
        if self.cost_per_billion_tokens is not None:
            rows.append(
                _row("cost of 1e9 tokens, at least", f"{self.cost_per_billion_tokens:,.2f}")
            )
        return rows


def measure(
    experiment: Experiment,
    target: Target,
    *,
    step: str = "train",
    tell: Callable[[str], None] = lambda stage: None,
    recall: Callable[[str], Fit | None] = lambda text: None,
) -> Fit:
    """Compiles the train step, or the decoding of one token, for the target.

    `tell` hears of each stage. `recall` is asked for an answer to the lowered text before it is
    compiled. ValueError for what `plan` and `plan_decode` refuse, and for a card that JAX has no
    kernels for unless it is here.
    """
    tell("tracing")
    subject = _Training(experiment, target) if step == "train" else _Decoding(experiment, target)
    executed = counts.executed(subject.jaxpr, target.count)
    tell("lowering")
    try:
        lowered = subject.lower()
    except RuntimeError as error:
        if "No supported GPU devices" not in str(error):
            raise
        # JAX 0.12 lowers Triton's kernels for cards of a list of its own, and for others only where
        # they are.
        raise ValueError(
            f"{target.name}: this version of JAX makes kernels for {target.device_kind} only where there is one; ask with JAX 0.10, "
            "or set config.execution.attention to 'xla' and leave config.quantize.format out"
        ) from None
    known = recall(lowered.as_text())
    if known is not None:
        return known
    tell("compiling")
    try:
        compiled = lowered.compile(target.compiler_options)
    except jax.errors.JaxRuntimeError as error:
        needed = required_bytes(str(error))
        if needed is None:
            raise
        return _make(subject, target, executed, needed, None)
    tell("reading")
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    needed += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return _make(subject, target, executed, needed, compiled)


def _make(
    subject: Any, target: Target, executed: Mapping[str, float], needed: int, compiled: Any
) -> Fit:
    """The Fit of a step that needs so many bytes of a device; `compiled` is None where the compiler
    gave it up."""
    held = subject.held
    host, gradients, found, moved, times, notes = (
        0,
        held["params"] if subject.trains else 0,
        None,
        None,
        Roofline(),
        [],
    )
    if compiled is None:
        notes = [
            "the compiler gives up programs that are larger than the device: no collectives, no times"
        ]
    else:
        memory = compiled.memory_analysis()
        gradients = min(gradients, memory.temp_size_in_bytes)
        host = memory.host_temp_size_in_bytes + memory.host_argument_size_in_bytes
        turns = None if subject.trains else 1  # a turn of the decoding loop is a step
        module = parse(compiled.as_text(), otherwise=turns)
        found, moved = collectives(module), memory_bytes(module)
        times = roofline(target, executed, moved, found)
    # What the compiler adds to arrays so that they suit its tiles, the batch and the scalars are
    # among the temporaries.
    rest = needed - sum(held.values()) - gradients
    dtype = subject.experiment.precision.compute
    return Fit(
        target=target.name,
        step=subject.step,
        mesh=dict(subject.mesh.shape),
        **held,
        gradients=gradients,
        temporaries=rest,
        capacity=target.capacity_bytes,
        host_bytes=host,
        tokens=subject.tokens,
        model_flops=subject.model_flops,
        hardware_flops=sum(executed.values()),
        recompute_ratio=subject.recompute_ratio(executed),
        collective_bytes=None if found is None else collective_bytes(found),
        least_bytes=subject.least_bytes,
        memory_bytes=moved,
        roofline=times,
        peak_flops=peak_flops(target, dtype),
        chips=math.prod(target.shape) * target.slices,
        notes=notes,
    )


class _Training:
    """What `measure` asks of a train step."""

    step, trains = "train", True

    def __init__(self, experiment: Experiment, target: Target):
        self.experiment = experiment
        self._program = program = plan(experiment, target)
        self._traced = trace(program)
        self.jaxpr, self.mesh = self._traced.jaxpr, program.mesh
        state = program.state
        names = {"params": "trainable", "frozen": "frozen", "optimizer": "optimizer"}
        self.held = {part: device_bytes(getattr(state, name)) for part, name in names.items()}
        self.tokens = program.batch_size * experiment.data.sequence_length
        self.model_flops = counts.model(program)
        self.least_bytes = least_bytes(program)

    def lower(self) -> jax.stages.Lowered:
        with jax.set_mesh(self.mesh):
            return self._traced.lower()

    def recompute_ratio(self, executed: Mapping[str, float]) -> float:
        return counts.recompute_ratio(self._program, executed)


class _Decoding:
    """What `measure` asks of the decoding of one token a row; the cache stands where training has
    its optimizer."""

    step, trains, least_bytes = "decode", False, None

    def __init__(self, experiment: Experiment, target: Target):
        self.experiment = experiment
        self._decode = decode = plan_decode(experiment, target)
        self.jaxpr, self.mesh, self.tokens = decode.jaxpr, decode.mesh, decode.tokens
        self.held = {"params": 0, "frozen": decode.params_bytes, "optimizer": decode.cache_bytes}
        self.model_flops = decode_flops(experiment.model, decode.tokens, decode.length)

    def lower(self) -> jax.stages.Lowered:
        with jax.set_mesh(self.mesh):
            return self._decode.traced.lower()

    def recompute_ratio(self, executed: Mapping[str, float]) -> None:
        return None


def _row(name: str, value: str) -> str:
    return f"  {name:<30}{value:>14}"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
