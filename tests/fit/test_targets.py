"""Hardware that is not here: its spelling, what is published of it, and that its compiler takes the
description."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from research.devices.nvidia import description
from research.devices.table import DEVICES, TARGETS, memory_bandwidth, peak_flops
from research.fit.targets import parse_target, parse_targets

ROOT = Path(__file__).parent.parent.parent
GIB = 2**30
PACKAGES = {"tpu": "libtpu", "gpu": "jax_cuda13_plugin"}
NVIDIA = [
    "t4", "a100-40", "a100-80", "l4", "rtx4090", "h100:8", "h100:2x8", "h100:8x8", "h200:2",
    "b200:8", "rtx5090:2",
]  # fmt: skip
TPU = [
    "v4:1x1x1", "v4:2x2x1", "v4:4x4x8", "v5e:1x1", "v5e:2x4", "v5e:16x16", "v5e:16x16@4",
    "v5p:1x1x1", "v5p:2x2x1", "v5p:4x4x4", "v5p:4x4x4@2", "v5p:8x16x16", "v6e:1x1", "v6e:16x16",
    "tpu7x:1x1x1", "tpu7x:2x2x1", "tpu7x:4x4x4@2",
]  # fmt: skip
SINGLE = {name: f"{name}:{'x'.join('1' * tpu.torus)}" for name, tpu in TARGETS.items() if tpu.torus}

CARDS = [name for name, device in TARGETS.items() if device.processors]


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


def need_compiler(platform: str) -> None:
    """Skips where the platform's compiler is not installed; setup.cfg's extra "fit" brings both."""
    if importlib.util.find_spec(PACKAGES[platform]) is None:
        pytest.skip(
            f"the compiler for {platform} is in the package {PACKAGES[platform]}, which is not installed"
        )


@pytest.mark.parametrize(
    ("text", "platform", "count", "slices"),
    [
        ("h100", "gpu", 1, 1),
        ("h100:8", "gpu", 8, 1),
        ("h100:8x8", "gpu", 64, 8),
        ("h200:2x4", "gpu", 8, 2),
        ("a100-40", "gpu", 1, 1),
        ("v5p:4x4x4", "tpu", 64, 1),
        ("v5p:4x4x4@2", "tpu", 128, 2),
        ("v5e:1x1", "tpu", 1, 1),
        ("v4:2x2x1", "tpu", 4, 1),
        ("tpu7x:1x1x1", "tpu", 2, 1),
        ("tpu7x:2x2x1@3", "tpu", 24, 3),
        ("cpu", "cpu", 1, 1),
        ("cpu:8", "cpu", 8, 1),
    ],
)
def test_a_spelling_says_how_many_devices_and_slices(text, platform, count, slices):
    target = parse_target(text)
    assert (target.name, target.platform, target.count, target.slices) == (
        text,
        platform,
        count,
        slices,
    )


def test_several_are_told_apart_by_commas():
    assert [target.name for target in parse_targets("v5e:4x4, v6e:4x4,h100:8")] == [
        "v5e:4x4",
        "v6e:4x4",
        "h100:8",
    ]
    for nothing in ("", ",", " , "):
        with pytest.raises(ValueError, match="name none"):
            parse_targets(nothing)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("h10:8", "nearest is 'h100'"),
        ("v5", "nearest is 'v5e'"),
        ("rtx490", "nearest is 'rtx4090'"),
        ("a100", "nearest is 'a100-40'"),
        ("h100:0", "h100:2x8"),
        ("h100:16", "up to 8"),
        ("h100:8x16", "up to 8"),
        ("h100:1x2x8", "NODESxCARDS"),
        ("v5e:3x3", "16"),
        ("v5e", "2x4"),
        ("v5e:4x4x4", "8x16"),
        ("v5e:32x32", "16x16"),
        ("v5e:4x2", "2x4"),
        ("v5p:4x4", "2x2x1"),
        ("v5p:4x4x6", "multiples of 4"),
        ("v5p:8x4x4", "A <= B <= C"),
        ("v5p:32x32x32", "6144"),
        ("v5p:4x4x4@0", "@N"),
        ("v5p:4x4x4@", "@N"),
        ("v5p:4x4x4@2x2", "@N"),
        ("cpu:0", "cpu:8"),
        ("cpu:2x2", "cpu:8"),
    ],
)
def test_what_is_not_made_is_refused_in_a_line(text, says):
    with pytest.raises(ValueError) as error:
        parse_target(text)
    assert says in str(error.value) and text in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", [*NVIDIA, *TPU])
def test_peaks_memory_and_network_are_known_of_each(text):
    target = parse_target(text)
    assert target.device_kind in DEVICES and memory_bandwidth(target.device_kind) > 0
    assert peak_flops(target.device_kind, "float16" if text == "t4" else "bfloat16") > 0
    assert target.capacity_bytes > 14 * GIB
    # The network within is what is next to the chips, and slower than their own memory.
    network = target.network
    assert network.between < network.inside
    assert target.count == 1 or network.inside < memory_bandwidth(target.device_kind)


# The pod's "all-reduce bandwidth" of cloud.google.com/tpu/docs/v4, v5e and v6e: all chips receiving
# at once. That of v4 is printed as 1.1 PB/s, which is binary: 4096 x 300 GB/s are 1.09 x 2**50.
@pytest.mark.parametrize(
    ("text", "bandwidth"),
    [("v4:16x16x16", 1.1 * 2**50), ("v5e:16x16", 51.2e12), ("v6e:16x16", 102.4e12)],
)
def test_a_pods_links_add_up_to_what_is_published(text, bandwidth):
    target = parse_target(text)
    assert target.count * target.network.inside == pytest.approx(
        bandwidth, rel=0.01
    )  # two digits are printed


def test_links_are_those_that_a_slice_has():
    def links(text):
        target = parse_target(text)
        return target.network.inside / TARGETS[target.kind].slices.link

    # Lines have one link an axis at their ends, rings two; axes of one chip none.
    assert [links(f"v5e:{shape}") for shape in ("2x2", "4x8", "8x16", "16x16")] == [2, 2, 3, 4]
    assert [links(f"v5p:{shape}") for shape in ("2x2x1", "2x2x2", "2x4x4", "4x4x4", "4x4x8")] == [
        2,
        3,
        3,
        6,
        6,
    ]
    assert links("v5e:1x1") == math.inf and links("tpu7x:1x1x1") == 6
    assert links("v5e:4x4@2") == links("v5e:4x4")


@pytest.mark.parametrize("kind", CARDS)
def test_descriptions_are_of_the_card(kind):
    text = description(TARGETS[kind])
    values = dict(re.findall(r"(\w+): ([^\s{}]+|\"[^\"]*\")", text))
    assert text.count("{") == text.count("}") == 3
    assert f'device_description_str: "{TARGETS[kind].kind}"' in text
    assert float(values["memory_bandwidth"]) == memory_bandwidth(TARGETS[kind].kind)
    # Peak float32 of the sheet is a fused multiply-add a lane and clock: in TFLOP/s, of each card's
    # data sheet or whitepaper.
    sheet = {
        "t4": 8.1,
        "a100-40": 19.5,
        "a100-80": 19.5,
        "l4": 30.3,
        "rtx4090": 82.6,
        "h100": 66.9,
        "h200": 66.9,
        "b200": 75,
        "rtx5090": 104.8,
    }
    tera = (
        2
        * int(values["core_count"])
        * int(values["fpus_per_core"])
        * float(values["clock_rate_ghz"])
        / 1000
    )
    assert tera == pytest.approx(sheet[kind], rel=0.01)  # sheets print two or three digits


def test_shared_memory_of_a_block_is_that_of_the_capability():
    # CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
    wanted = {
        (7, 5): 65536,
        (8, 0): 166912,
        (8, 9): 101376,
        (9, 0): 232448,
        (10, 0): 232448,
        (12, 0): 101376,
    }
    for kind in CARDS:
        card = TARGETS[kind]
        assert f"shared_memory_per_block_optin: {wanted[card.capability]}" in description(card)


@pytest.mark.parametrize("text", ["h100:8", "v5e:1x1"])
def test_a_missing_compiler_names_the_line_to_run(text, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=re.escape("pip install '.[fit]'")):
        parse_target(text).devices()


def test_the_cpus_devices_are_this_machines():
    assert (
        len(parse_target("cpu:8").devices()) == 8
        and parse_target("cpu").devices()[0].platform == "cpu"
    )
    with pytest.raises(ValueError, match="JAX_NUM_CPU_DEVICES=99"):
        parse_target("cpu:99").devices()


def test_as_many_cpu_devices_are_made_as_are_asked_for():
    assert answer("compile", "cpu:3")["cpu:3"]["reduces"]


def test_parsing_loads_no_compiler():
    assert not answer("parse", *NVIDIA, *TPU)["loaded"]


@pytest.mark.parametrize(
    ("platform", "targets"), [("gpu", NVIDIA), ("tpu", TPU)], ids=["gpu", "tpu"]
)
def test_every_target_compiles(platform, targets):
    need_compiler(platform)
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
    need_compiler("tpu")
    said = answer("wrong")["error"]
    assert "v5e:3x3" in said and "unknown to the compiler in libtpu" in said and "\n" not in said


def test_a_tpus_memory_is_what_its_compiler_has():
    need_compiler("tpu")
    found = answer("overfill", *SINGLE.values())
    for kind, text in SINGLE.items():
        assert f"{found[text]:.2f}" == f"{parse_target(text).capacity_bytes / GIB:.2f}", (
            kind
        )  # it prints two digits


def test_two_processes_hold_libtpu_and_jax_stays_on_the_cpu():
    need_compiler("tpu")
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
