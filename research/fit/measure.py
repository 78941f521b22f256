"""A step compiled for a target and read: memory as the compiler says it, arithmetic as the program
counts it, traffic as it was compiled."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import jax

from research.experiment.config import Experiment
from research.fit import flops as counts
from research.fit.collectives import collective_bytes, collectives
from research.fit.hlo.kernels import kernels
from research.fit.hlo.text import parse
from research.fit.oom import required_bytes
from research.fit.report import Fit
from research.fit.roofline import Roofline, peak_flops, roofline
from research.fit.subject import SUBJECTS, Subject
from research.fit.targets import Target
from research.fit.traffic import memory_bytes


def measure(
    experiment: Experiment,
    target: Target,
    *,
    step: str = "train",
    tell: Callable[[str], None] = lambda stage: None,
    recall: Callable[[str], Fit | None] = lambda text: None,
) -> Fit:
    """Compiles the train step, or with `step="decode"` the decoding of one token, for the target.

    `tell` hears of each stage. `recall` is asked for an answer to the lowered text before it is
    compiled. ValueError for what `plan` and `plan_decode` refuse, and for a card that JAX has no
    kernels for unless it is here.
    """
    tell("tracing")
    began, seconds = time.monotonic(), {}
    subject = SUBJECTS[step](experiment, target)
    seconds["trace"] = time.monotonic() - began
    # Counted before the compile, so that a program which is too large still has its FLOPs.
    executed = counts.executed(subject.jaxpr, target.count)
    tell("lowering")
    began = time.monotonic()
    lowered = _lower(subject, target)
    seconds["lower"] = time.monotonic() - began
    # The text is the program: two configs that lower to it share one compile.
    text = lowered.as_text()
    if subject.sampling is not None:
        text += subject.sampling.lowered.as_text()
    cached = recall(text)
    if cached is not None:
        return cached
    tell("compiling")
    dtype, began = experiment.precision.compute, time.monotonic()
    try:
        compiled = lowered.compile(target.compiler_options)
    except jax.errors.JaxRuntimeError as error:
        # libtpu gives up a program larger than the chip, and its error says how large it is.
        needed = required_bytes(str(error))
        if needed is None:
            raise
        return _too_large(subject, target, dtype, executed, needed)
    seconds["compile"] = time.monotonic() - began
    tell("reading")
    fit = _read(subject, target, dtype, executed, compiled)
    if subject.sampling is not None:
        tell("compiling the sampling")
        fit = subject.sampling.beside(fit)
    return replace(fit, compile_seconds={name: round(one, 2) for name, one in seconds.items()})


def _lower(subject: Subject, target: Target) -> jax.stages.Lowered:
    """The step lowered; ValueError where JAX has no kernels for the card."""
    try:
        return subject.lower()
    except RuntimeError as error:
        if "No supported GPU devices" not in str(error):
            raise
        # JAX 0.12 lowers Triton's kernels for cards of a list of its own, and for others only where
        # they are.
        raise ValueError(
            f"{target.name}: this version of JAX makes kernels for {target.device_kind} only where "
            "there is one; ask with JAX 0.10, or set config.execution.attention to 'xla' and leave "
            "config.quantize.format out"
        ) from None


def _read(
    subject: Subject,
    target: Target,
    dtype: str,
    executed: Mapping[str, float],
    compiled: jax.stages.Compiled,
) -> Fit:
    """The Fit of a step that its compiler has made."""
    # The compiler's own figures, which are exact: buffers are assigned at compile time.
    memory = compiled.memory_analysis()
    # Donated arguments are results too (`alias`) and take their memory once.
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    needed += memory.output_size_in_bytes - memory.alias_size_in_bytes
    gradients = subject.device_bytes["params"] if subject.trains else 0
    # Decoding's loop ends where its data say, and a turn of it is a step.
    module = parse(compiled.as_text(), otherwise=None if subject.trains else 1)
    step_collectives, moved_bytes = collectives(module), memory_bytes(module)
    return _fit(
        subject,
        target,
        dtype,
        executed,
        needed,
        # A compiler may have used up a gradient before the next is there.
        gradients=min(gradients, memory.temp_size_in_bytes),
        host_bytes=memory.host_temp_size_in_bytes + memory.host_argument_size_in_bytes,
        collective_bytes=collective_bytes(step_collectives),
        memory_bytes=moved_bytes,
        roofline=roofline(target, executed, moved_bytes, step_collectives),
        kernels=kernels(module),
    )


def _too_large(
    subject: Subject, target: Target, dtype: str, executed: Mapping[str, float], needed: int
) -> Fit:
    """The Fit of a step that its compiler gave up for the bytes it needs."""
    note = "the compiler gives up programs larger than the device: no collectives, no times"
    return _fit(
        subject,
        target,
        dtype,
        executed,
        needed,
        gradients=subject.device_bytes["params"] if subject.trains else 0,
        host_bytes=0,
        collective_bytes=None,
        memory_bytes=None,
        roofline=Roofline(),
        notes=[note],
    )


def _fit(
    subject: Subject,
    target: Target,
    dtype: str,
    executed: Mapping[str, float],
    needed: int,
    *,
    gradients: int,
    **read,
) -> Fit:
    """The Fit of a step that needs so many bytes of a device; `read` are fields of it."""
    return Fit(
        target=target.name,
        step=subject.step,
        mesh=dict(subject.mesh.shape),
        **subject.device_bytes,
        gradients=gradients,
        # The rest: also the batch, scalars, and what the compiler adds to arrays to suit its tiles.
        temporaries=needed - sum(subject.device_bytes.values()) - gradients,
        capacity=target.capacity_bytes,
        tokens=subject.tokens,
        model_flops=subject.model_flops,
        hardware_flops=sum(executed.values()),
        recompute_ratio=subject.recompute_ratio(executed),
        least_bytes=subject.least_bytes,
        peak_flops=peak_flops(target, dtype),
        chips=math.prod(target.shape) * target.slices,
        **read,
    )
