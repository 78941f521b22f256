"""The one table of hardware: every row is complete, and what is derived of it agrees."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from research.devices import backend
from research.devices.nvidia import CARDS
from research.devices.table import DEVICES, TARGETS, capability, fast_types, peak_flops, torus
from research.devices.tpu import TPUS

OF_A_CARD = ("processors", "inside", "between")
# What each compute capability multiplies in tensor cores, of the CUDA C++ Programming Guide's
# "Arithmetic Instructions" and NVIDIA's architecture whitepapers.
AMPERE = {"bfloat16", "float16", "tfloat32", "int8"}
TYPES = {
    (7, 0): {"float16"},
    (7, 5): {"float16", "int8"},
    (8, 0): AMPERE,
    (8, 6): AMPERE,
    (8, 9): AMPERE | {"float8"},
    (9, 0): AMPERE | {"float8"},
    (10, 0): AMPERE | {"float8"},
    (12, 0): AMPERE | {"float8"},
}


def test_no_name_or_target_is_given_twice():
    rows = (*TPUS, *CARDS)
    assert len(DEVICES) == sum(1 + len(device.aliases) for device in rows)
    assert len(TARGETS) == sum(bool(device.target) for device in rows)


@pytest.mark.parametrize("device", (*TPUS, *CARDS), ids=lambda device: device.kind)
def test_every_row_is_complete(device):
    assert device.memory_bandwidth > 0 and device.flops
    if device in TPUS:
        assert device.torus in (2, 3) and device.capability is None and "bfloat16" in device.flops
    else:
        assert device.torus is None and set(device.flops) == TYPES[device.capability]
    of_target = {"memory", "slices"} if device in TPUS else {"memory", *OF_A_CARD}
    given = {name for name in ("memory", "slices", *OF_A_CARD) if getattr(device, name)}
    assert given == (of_target if device.target else set())


@pytest.mark.parametrize("device", CARDS, ids=lambda device: device.kind)
def test_rates_of_a_card_are_in_the_proportions_of_the_hardware(device):
    wide = device.flops["float16"]
    # The sheets round to three or four digits; the brief of Blackwell gives tfloat32 two.
    assert device.flops.get("bfloat16", wide) == wide
    assert device.flops.get("tfloat32", wide / 2) / wide == pytest.approx(0.5, rel=0.03)
    for name in device.fast_types:
        # Twice, and four times on GeForce cards, which halve 16-bit products with 32-bit sums.
        ratio = 4 if "GeForce" in device.kind and name == "int8" else 2
        assert device.flops[name] / wide == pytest.approx(ratio, rel=0.03)


def test_variants_of_a_card_are_told_apart_by_whole_words():
    part = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    assert capability(part) == (9, 0) and fast_types(part) == {"int8", "float8"}
    assert peak_flops(part) is None  # of a part of a card the sheet's figures say nothing
    assert capability("NVIDIA A100-SXM-64GB") == (8, 0) and capability("NVIDIA A10") == (8, 6)
    assert capability("NVIDIA L4 MIG") == (8, 9) and capability("NVIDIA L400") is None
    assert capability("NVIDIA GeForce RTX 3090 Ti") == (8, 6) and capability("cpu") is None


def test_variants_share_what_is_known_of_them():
    for device in DEVICES.values():
        for name in device.variants:
            assert fast_types(name) == device.fast_types, name
            assert (capability(name), torus(name)) == (device.capability, device.torus), name


# The kinds are those that JAX's topologies give and the driver's names of cards.
FAST = {
    "TPU v4": (0, 0),
    "TPU v5 lite": (1, 0),
    "TPU v5": (1, 0),
    "TPU v6 lite": (1, 0),
    "TPU7x": (0, 1),
    "Tesla V100-SXM2-16GB": (0, 0),
    "Tesla T4": (1, 0),
    "Quadro RTX 8000": (1, 0),
    "NVIDIA A100-SXM4-80GB": (1, 0),
    "NVIDIA A10": (1, 0),
    "NVIDIA A40": (1, 0),
    "NVIDIA RTX A6000": (1, 0),
    "NVIDIA GeForce RTX 3090": (1, 0),
    "NVIDIA L40S": (1, 1),
    "NVIDIA RTX 6000 Ada Generation": (1, 1),
    "NVIDIA GeForce RTX 4090": (1, 1),
    "NVIDIA H100 80GB HBM3": (1, 1),
    "NVIDIA GeForce RTX 5090": (1, 1),
    "AMD Instinct MI300X": (0, 0),
    "cpu": (1, 1),
}


@pytest.mark.parametrize("kind", FAST)
def test_what_is_multiplied_as_it_is_held_follows_the_device(kind, monkeypatch):
    mesh = SimpleNamespace(abstract_device=SimpleNamespace(device_kind=kind))
    monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda: mesh)
    assert tuple(map(backend.multiplies, (jnp.int8, jnp.float8_e4m3fn))) == FAST[kind]


@pytest.mark.parametrize(
    ("kind", "old"),
    [
        ("Tesla V100-SXM2-32GB", True),
        ("Tesla T4", True),
        ("Quadro RTX 6000", True),
        ("NVIDIA TITAN RTX", True),
        ("NVIDIA GeForce RTX 2080 Ti", True),
        ("NVIDIA GeForce RTX 3090", False),
        ("NVIDIA L4", False),
        ("TPU v5 lite", False),
        ("cpu", False),
    ],
)
def test_tritons_kernels_want_ampere(kind, old, monkeypatch):
    mesh = SimpleNamespace(abstract_device=SimpleNamespace(device_kind=kind))
    monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda: mesh)
    assert backend.before_triton() == (kind if old else None)
