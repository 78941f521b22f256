"""Hardware that is not here: its spelling, what is published of it, and the description that its
compiler is given."""

import importlib.util
import math
import re

import pytest

from research.devices.nvidia import description
from research.devices.table import DEVICES, TARGETS, memory_bandwidth, peak_flops
from research.fit.targets import parse_target, parse_targets
from tests.fit.hardware import NVIDIA, TPU

GIB = 2**30
CARDS = [name for name, device in TARGETS.items() if device.processors]


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
