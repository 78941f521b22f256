"""Compilers take the hardware that is not here: each target compiles, in a process of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from research.devices.table import TARGETS
from research.fit.targets import parse_target
from tests.fit.hardware import NVIDIA, TPU
from tests.fit.processes import need_compiler

ROOT = Path(__file__).parent.parent.parent
GIB = 2**30
SINGLE = {name: f"{name}:{'x'.join('1' * tpu.torus)}" for name, tpu in TARGETS.items() if tpu.torus}


def child(*arguments: str) -> subprocess.Popen:
    """This file as a program, where the environment suits compilers without their devices."""
    settings = {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "",
        "JAX_PERSISTENT_CACHE_ENABLE": "0",
    }
    command = [sys.executable, __file__, *arguments]
    piped = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, env={**os.environ, **settings}, text=True, **piped)


def answer(*arguments: str) -> dict:
    """What that program prints, and what it says beside."""
    process = child(*arguments)
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    return json.loads(out) | {"stderr": err}


def test_as_many_cpu_devices_are_made_as_are_asked_for():
    assert answer("compile", "cpu:3")["cpu:3"]["reduces"]


def test_parsing_loads_no_compiler():
    assert not answer("parse", *NVIDIA, *TPU)["loaded"]


@pytest.mark.parametrize(
    ("platform", "targets"), [("gpu", NVIDIA), ("tpu", TPU)], ids=["gpu", "tpu"]
)
def test_every_target_compiles(platform, targets):
    need_compiler(targets[0])
    found = answer("compile", *targets)
    for text in targets:
        target, made = parse_target(text), found[text]
        assert made["kind"] == target.device_kind and made["devices"] == target.count
        assert made["reduces"] == (
            target.count > 1
        )  # the sum over devices is there, and the program is for this many
        assert made["ordered"]  # by slice or node
    assert (
        "could not determine" not in found["stderr"]
    )  # the compiler has no complaint about this machine


def test_the_compiler_says_what_it_makes_of_a_wrong_topology():
    need_compiler("v5e:1x1")
    said = answer("wrong")["error"]
    assert "v5e:3x3" in said and "unknown to the compiler in libtpu" in said and "\n" not in said


def test_a_tpus_memory_is_what_its_compiler_has():
    need_compiler("v5e:1x1")
    found = answer("overfill", *SINGLE.values())
    for kind, text in SINGLE.items():
        assert f"{found[text]:.2f}" == f"{parse_target(text).capacity_bytes / GIB:.2f}", (
            kind
        )  # it prints two digits


def test_two_processes_hold_libtpu_and_jax_stays_on_the_cpu():
    need_compiler("v5e:1x1")
    both = [child("hold", "v5e:2x2"), child("hold", "v5p:2x2x1")]
    try:
        held = [
            json.loads(process.stdout.readline() or "{}") for process in both
        ]  # each has its devices by now
    finally:
        said = [process.communicate(input="go\n") for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert [(one["here"], one["kept"]) for one in held] == [(["cpu"], True)] * 2


def compiled(text: str) -> dict:
    """Of a product whose sum is over all devices, compiled for a target: its devices, and whether
    they reduce."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    target = parse_target(text)
    devices = target.devices()
    mesh = Mesh(np.array(devices), ("x",))
    specs = PartitionSpec(None, "x"), PartitionSpec("x", None)
    step = jax.shard_map(
        lambda x, w: jax.lax.psum(x @ w, "x"), mesh=mesh, in_specs=specs, out_specs=PartitionSpec()
    )
    shapes = (128, 128 * len(devices)), (128 * len(devices), 128)
    inputs = [
        jax.ShapeDtypeStruct(a, jnp.bfloat16, sharding=NamedSharding(mesh, b))
        for a, b in zip(shapes, specs)
    ]
    program = jax.jit(step).lower(*inputs).compile(target.compiler_options)
    within = target.count // target.slices
    index = (
        "slice_index" if target.platform == "tpu" else "process_index"
    )  # a node has one process, a slice one a host
    order = [getattr(device, index, 0) for device in devices]
    parts = [set(order[first : first + within]) for first in range(0, len(order), within)]
    ordered = parts == [{part} for part in range(target.slices)]
    assert (
        text.startswith("cpu")
        or program.memory_analysis().argument_size_in_bytes == 2 * 2 * 128 * 128
    )
    return {
        "kind": devices[0].device_kind,
        "devices": len(devices),
        "reduces": "all-reduce" in program.as_text(),
        "ordered": ordered,
    }


def overfilled(text: str) -> float:
    """GiB that a target's compiler says there are, when asked for more."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(parse_target(text).devices()[:1]), ("x",))
    x = jax.ShapeDtypeStruct((200 * GIB,), jnp.int8, sharding=NamedSharding(mesh, PartitionSpec()))
    try:
        jax.jit(lambda x: x + 1).lower(x).compile()
    except jax.errors.JaxRuntimeError as error:
        return float(re.search(r"available HBM \(([\d.]+)G\)", str(error))[1])
    raise SystemExit(f"{text} has room for 400 GiB")


def main(what: str, *texts: str) -> dict:
    """One of the things that want a process of their own."""
    import jax

    if what == "parse":
        for text in texts:
            parse_target(text)
        maps = Path("/proc/self/maps").read_text()
        return {"loaded": [name for name in ("libtpu.so", "xla_cuda_plugin.so") if name in maps]}
    if what == "hold":
        before = dict(os.environ)
        parse_target(texts[0]).devices()
        kept = (
            dict(os.environ) == before
        )  # settings that a chip of this machine would mistake are taken back
        print(
            json.dumps({"here": [device.platform for device in jax.devices()], "kept": kept}),
            flush=True,
        )
        sys.stdin.readline()
        return compiled(texts[0])
    if what == "wrong":
        from dataclasses import replace

        try:
            replace(parse_target("v5e:4x4"), name="v5e:3x3", shape=(3, 3)).devices()
        except ValueError as error:
            return {"error": str(error)}
    return {text: {"compile": compiled, "overfill": overfilled}[what](text) for text in texts}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
