"""What research.fit reads in small steps compiled for a target: python layers.py TARGET prints one
JSON object.

`measured(target)` runs it in a process of its own, where the environment suits compilers without
their devices.
"""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research.fit import traffic
from research.fit.collectives import collective_bytes, collectives
from research.fit.hlo.text import parse
from research.fit.targets import parse_target

ROOT = Path(__file__).parent.parent.parent.parent
COMPILERS = {"h100": "jax_cuda13_plugin", "v5e": "libtpu", "v5p": "libtpu"}
L, B, D, F = 3, 4096, 512, 2048


@functools.cache
def measured(target: str) -> dict:
    """What `read` finds in each step for the target, by the step's name; skips where its compiler
    is not installed."""
    package = COMPILERS.get(target.partition(":")[0])
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(
            f"the compiler for {target} is in the package {package}, which is not installed"
        )
    settings = {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    command = [sys.executable, __file__, target]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def compile_for(target, function, *arguments):
    """A jitted function of arrays of (shape, dtype, spec), on all devices of a target, axis "x"."""
    mesh = Mesh(np.array(target.devices()), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        placed = [
            jax.ShapeDtypeStruct(s, t, sharding=NamedSharding(mesh, p)) for s, t, p in arguments
        ]
        return jax.jit(function).lower(*placed).compile(target.compiler_options)


def stack(target, unroll, gradient):
    """L residual layers with two sharded float32 matrices, gathered in bfloat16; of the gradient
    the layers are recomputed."""

    def layer(h, weights):
        a, b = (jax.reshard(w.astype(jnp.bfloat16), P(None, None)) for w in weights)
        return h + jax.nn.silu(h @ a) @ b, None

    def loss(weights, h):
        h, _ = jax.lax.scan(jax.checkpoint(layer) if gradient else layer, h, weights, unroll=unroll)
        return jnp.sum(h.astype(jnp.float32) ** 2)

    a, b = (
        ((L, D, F), jnp.float32, P(None, "x", None)),
        ((L, F, D), jnp.float32, P(None, None, "x")),
    )
    h = ((B, D), jnp.bfloat16, P("x", None))
    return compile_for(
        target, lambda a, b, h: (jax.grad(loss) if gradient else loss)((a, b), h), a, b, h
    )


def product(target):
    return compile_for(
        target,
        lambda x, y: x @ y,
        ((8192, 512), jnp.bfloat16, P()),
        ((512, 8192), jnp.bfloat16, P()),
    )


def chain(target):
    return compile_for(target, lambda x: jnp.tanh(x * 2 + 1) * x, ((16384, 4096), jnp.float32, P()))


def read_stack(target):
    """Sixteen float32 matrices, 268 MB: more than a chip holds beside its memory, each for one
    product."""
    step = lambda h, w: (jnp.tanh(h @ w), None)
    return compile_for(
        target,
        lambda w, h: jax.lax.scan(step, h, w)[0],
        ((16, 2048, 2048), jnp.float32, P()),
        ((256, 2048), jnp.float32, P()),
    )


def write_stack(target):
    """The states of 64 steps, kept."""
    step = lambda h, _: (h * 1.5, h * 1.5)
    return compile_for(
        target,
        lambda h: jax.lax.scan(step, h, None, length=64)[1],
        ((1024, 1024), jnp.float32, P()),
    )


def packed(target):
    """Six int4 matrices, each for one product."""
    step = lambda h, w: (jnp.tanh(h @ w.astype(jnp.bfloat16)), None)
    return compile_for(
        target,
        lambda w, h: jax.lax.scan(step, h, w)[0],
        ((6, 2048, 2048), jnp.int4, P()),
        ((256, 2048), jnp.bfloat16, P()),
    )


ONE = {
    "product": product,
    "chain": chain,
    "read_stack": read_stack,
    "write_stack": write_stack,
    "packed": packed,
}
MANY = {
    f"{'gradient' if gradient else 'forward'}_{'unrolled' if unroll else 'scanned'}": lambda t,
    u=unroll,
    g=gradient: stack(t, u, g)
    for gradient in (False, True)
    for unroll in (False, True)
}


def read(compiled):
    module = parse(compiled.as_text())
    found = collectives(module)
    cost = compiled.cost_analysis() or {}
    return {
        "trips": sorted(set(module.executions.values())),
        "bytes": collective_bytes(found),
        "wire": sum(one.wire_bytes * one.times for one in found),
        "groups": sorted(
            {group for one in found if one.operand_bytes > 1000 for group in one.groups}
        ),
        "memory": traffic.memory_bytes(module),
        "compiler": cost.get("bytes accessed"),  # loops counted once; None on CUDA
    }


if __name__ == "__main__":
    asked = parse_target(sys.argv[1])
    steps = ONE if len(asked.devices()) == 1 else MANY
    print(json.dumps({name: read(make(asked)) for name, make in steps.items()}))
