"""Before its first step a run says how long it takes at least."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from research.run import least_time as module
from research.run.least_time import cpu_rate, least_time, published_rate
from tests.configs import experiment


def program(kind, platform, *, frozen=False, devices=1, **changes):
    device = SimpleNamespace(device_kind=kind, platform=platform)
    mesh = SimpleNamespace(devices=SimpleNamespace(flat=[device]), size=devices)
    return SimpleNamespace(
        experiment=experiment("quickstart", "smoke", **changes),
        mesh=mesh,
        batch_size=8,
        held_specs={"base": {"a": 1} if frozen else {}},
    )


def seconds(line):
    *hours, minutes, rest = line.split("at least ")[1].split(": ")[0].split(":")
    return int(hours[0] if hours else 0) * 3600 + int(minutes) * 60 + int(rest)


@pytest.mark.parametrize(("frozen", "steps", "least"), [(False, 1000, 378), (True, 1000, 252)])
def test_the_least_time_is_that_of_the_products(monkeypatch, frozen, steps, least):
    monkeypatch.setattr(module, "published_rate", lambda program: 1e9)
    line = least_time(program("card", "gpu", frozen=frozen), steps)[0]
    # 6 FLOPs for each weight and 12 for each visible key and element of the heads.
    weights = 512 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128)
    flops = 6 * weights + 12 * 2 * 64 * (64 + 1) / 2
    share = 2 / 3 if frozen else 1
    assert seconds(line) == least == round(steps * 8 * 64 * flops * share / 1e9)


def test_the_rate_is_that_of_all_devices_in_the_type_of_the_products():
    h100 = program("NVIDIA H100 80GB HBM3", "gpu", devices=8, **{"precision.compute": "bfloat16"})
    assert published_rate(h100) == pytest.approx(8 * 989e12, rel=1e-3)
    assert "8 NVIDIA H100 80GB HBM3" in least_time(h100, 10**9)[0]


@pytest.mark.parametrize("kind", ["NVIDIA H100 80GB HBM3", "an unknown card"])
def test_nothing_is_said_where_no_rate_is_published(kind):
    assert least_time(program(kind, "gpu"), 100) == []


def test_a_cpu_is_timed_and_its_line_says_so():
    line = least_time(program("cpu", "cpu", devices=8), 10**6)[0]
    assert "what this machine multiplies at" in line
    took = 10**6 * 8 * 64 * 738_048 / cpu_rate()
    assert seconds(line) == pytest.approx(took, abs=1)


@pytest.mark.parametrize("mesh", ["fsdp:4,tensor:2"], indirect=True)
def test_a_cpu_is_timed_under_a_mesh_of_fake_devices(mesh):
    cpu_rate.cache_clear()
    assert cpu_rate() > 1e8
    assert jnp.ones(1).sharding.mesh == mesh
