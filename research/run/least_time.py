"""The least time that a run can take: its products alone, at the rate of its devices."""

import functools
import time

import jax
import jax.numpy as jnp

from research.devices.table import peak_flops
from research.parallel.mesh import make_mesh
from research.run.program import Program
from research.training.flops import train_flops_per_token
from research.training.progress import clock_time

# Rows of the square matrices whose product is timed on a CPU: 2 GFLOPs, tens of milliseconds.
SQUARE = 1024
# The backward pass takes twice the forward one, half of it for the gradients of weights.
FROZEN_SHARE = 2 / 3


def least_time(program: Program, steps: int) -> list[str]:
    """A line on how long `steps` steps take at least; none where no rate is known, as for a float32
    run on a card.

    Rates are published, and measured on a CPU.
    """
    device = program.mesh.devices.flat[0]
    rate = published_rate(program)
    whose = f"the published peak of {program.mesh.size} {device.device_kind}"
    if device.platform == "cpu" and jax.process_count() == 1:
        rate, whose = cpu_rate(), "what this machine multiplies at"
    if not rate:
        return []
    seconds = least_seconds(program, steps, rate)
    return [
        f"{steps:,} steps take at least {clock_time(seconds)}: their products at "
        f"{rate / 1e9:,.0f} GFLOP/s, {whose}"
    ]


def least_seconds(program: Program, steps: int, rate: float) -> float:
    """Seconds that `steps` steps take at least at `rate` FLOP/s of all devices together.

    Counted are forward and backward pass (arXiv:2204.02311, appendix B), without gradients of
    weights where adapters are trained: no recomputation, evaluation or sampling, nor what an
    objective writes before it learns from it. Of the mesh only its size is asked.
    """
    length = program.experiment.data.sequence_length
    flops = train_flops_per_token(program.experiment.model, length) * program.batch_size * length
    share = FROZEN_SHARE if program.held_specs["base"] else 1
    return steps * flops * share / rate


def published_rate(program: Program) -> float | None:
    """Published peak FLOP/s of all devices of the mesh together; None for unknown devices."""
    device = program.mesh.devices.flat[0]
    # The type of the products decides: a chip multiplies bfloat16 faster than float32.
    peak = peak_flops(device.device_kind, program.experiment.precision.compute)
    return peak and peak * program.mesh.size


@functools.cache
def cpu_rate() -> float:
    """FLOP/s of a product of two float32 matrices on all cores of this machine's CPU, the fastest
    of four. JAX's fake devices share it, and XLA widens 16-bit products to float32."""
    took = []
    # The mesh that is set may be of several devices, each of which would multiply alike.
    with jax.set_mesh(make_mesh("", jax.local_devices(backend="cpu")[:1])):
        square = jnp.ones((SQUARE, SQUARE), jnp.float32)
        product = jax.jit(jnp.matmul).lower(square, square).compile()
        for _ in range(4):
            began = time.perf_counter()
            product(square, square).block_until_ready()
            took.append(time.perf_counter() - began)
    return 2 * SQUARE**3 / min(took)
