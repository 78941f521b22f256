"""Bytes that a device's memory moves: by hand for small steps on every backend, and beside XLA's
own count on the CPU's.

The snippets are cut from what jax 0.10.2 prints for `compiled.as_text()` with its CUDA plugin and
libtpu 0.0.42, names and shapes made small; tests/fit/hlo/layers.py compiles the steps anew where
the compilers are installed.
"""

import pytest

from research.fit.hlo.module import Module
from research.fit.hlo.text import parse
from research.fit.traffic import host_bytes, memory_bytes
from tests.fit.hlo.layers import measured

ONE = ["cpu:1", "h100:1", "v5e:1x1", "v5p:1x1x1"]
# bytes that counters and offsets of loops move, under a ten thousandth of every figure below
SCALARS = 20_000


@pytest.mark.parametrize("target", ONE)
def test_a_product_reads_both_operands_and_writes_one(target):
    x, y, out = 8192 * 512, 512 * 8192, 8192 * 8192
    # The CPU multiplies in float32: it converts both before and the result after.
    converted = 6 * (x + y) + 4 * (x + y + out) + 6 * out
    assert measured(target)["product"]["memory"] == (
        converted if target == "cpu:1" else 2 * (x + y + out)
    )


@pytest.mark.parametrize("target", ONE)
def test_a_chain_of_elementwise_work_reads_and_writes_once(target):
    assert measured(target)["chain"]["memory"] == 2 * 4 * 16384 * 4096


@pytest.mark.parametrize("target", ONE)
def test_each_trip_reads_its_slice_of_a_stack(target):
    """Sixteen trips: reading the whole in each were sixteen stacks. Compilers copy or convert a
    slice, or first the stack, once or twice: at most five stacks, two of them in another type."""
    stack = 16 * 2048 * 2048 * 4
    assert stack <= measured(target)["read_stack"]["memory"] <= 5 * stack
    # A v5e converts the stack once to bfloat16, a read of four bytes and a write of two, and then
    # reads two; its states stay on the chip but for the first one's way in and the last one's way
    # out.
    if target == "v5e:1x1":
        state = 256 * 2048 * 4
        assert 0 <= measured(target)["read_stack"]["memory"] - stack * 2 - 2 * state <= SCALARS


@pytest.mark.parametrize("target", ONE)
def test_each_trip_writes_its_slice_of_a_stack(target):
    stack = 64 * 1024 * 1024 * 4
    assert (
        stack <= measured(target)["write_stack"]["memory"] <= 8 * stack
    )  # of the CPU's seven two are its copies of states
    if target in ("v5e:1x1", "v5p:1x1x1"):
        assert 0 <= measured(target)["write_stack"]["memory"] - stack - 4 * 1024 * 1024 <= SCALARS


def test_packed_matrices_are_read_packed():
    """On a v5e, where the states of this loop stay on the chip but for the first and the last
    one."""
    assert (
        0
        <= measured("v5e:1x1")["packed"]["memory"] - 6 * 2048 * 2048 // 2 - 2 * 256 * 2048 * 2
        <= SCALARS
    )


@pytest.mark.parametrize(
    ("target", "step"), [("cpu:1", "product"), ("cpu:1", "chain"), ("cpu:8", "forward_unrolled")]
)
def test_as_many_bytes_as_xla_counts_itself(target, step):
    """XLA's cost analysis, where there is no loop; it counts a few scalars that stand in no
    instruction's operands."""
    found = measured(target)[step]
    assert found["memory"] == pytest.approx(found["compiler"], rel=1e-6)


def module(body: str, entry: str, head: str = "") -> Module:
    return parse(f"HloModule m\n{head}\n%body {body}\n}}\n\nENTRY %main {entry}\n}}\n")


UPDATE = """(p: f32[8,4], u: f32[1,4], i: s32[]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %same = f32[8,4]{1,0} bitcast(%p)
  %u = f32[1,4]{1,0} parameter(1)
  %twice = f32[1,4]{1,0} add(%u, %u)
  %i = s32[] parameter(2)
  ROOT %update = f32[8,4]{1,0} dynamic-update-slice(%same, %twice, %i, %i)"""
UPDATE_ENTRY = """(p: f32[8,4], u: f32[1,4], i: s32[]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %u = f32[1,4]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %f = f32[8,4]{1,0} fusion(%p, %u, %i), kind=kLoop, calls=%body"""


def test_an_update_in_place_moves_the_update():
    assert memory_bytes(module(UPDATE, UPDATE_ENTRY)) == 16 + 16 + 4
    # Of a buffer that was changed on the way all is read and written.
    assert (
        memory_bytes(module(UPDATE.replace("bitcast", "negate"), UPDATE_ENTRY))
        == 128 + 128 + 16 + 4
    )


def test_an_update_outside_a_fusion_moves_it_twice():
    entry = UPDATE_ENTRY.replace(
        "fusion(%p, %u, %i), kind=kLoop, calls=%body", "dynamic-update-slice(%p, %u, %i, %i)"
    )
    assert memory_bytes(module(UPDATE, entry)) == 2 * 16 + 2 * 4


SLICE = """(p: f32[8,4], i: s32[]) -> bf16[1,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %c = bf16[8,4]{1,0} convert(%p)
  %s = bf16[1,4]{1,0} dynamic-slice(%c, %i, %i), dynamic_slice_sizes={1,4}
  ROOT %out = bf16[1,4]{1,0} negate(%s)"""
SLICE_ENTRY = """(p: f32[8,4], i: s32[]) -> bf16[1,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %f = bf16[1,4]{1,0} fusion(%p, %i), kind=kLoop, calls=%body"""


def test_a_fusion_reads_what_it_slices_in_the_type_that_lies_in_memory():
    assert memory_bytes(module(SLICE, SLICE_ENTRY)) == 4 * 4 + 4 + 4 * 2
    everything = SLICE.replace("negate(%s)", "dot(%s, %c)")  # a second use needs all
    assert memory_bytes(module(everything, SLICE_ENTRY)) == 8 * 4 * 4 + 4 + 4 * 2


def test_a_slice_of_a_slice_in_a_fusion_of_a_fusion():
    """A TPU's fusions nest; the inner one here only renames."""
    inner = """
%inner (q: f32[8,4]) -> f32[8,4] {
  %q = f32[8,4]{1,0} parameter(0)
  ROOT %b = f32[8,4]{1,0} bitcast(%q)
}
"""
    nested = SLICE.replace(
        "bf16[8,4]{1,0} convert(%p)", "f32[8,4]{1,0} fusion(%p), kind=kLoop, calls=%inner"
    )
    assert memory_bytes(module(nested, SLICE_ENTRY, inner)) == 4 * 4 + 4 + 4 * 2
    assert (
        memory_bytes(module(nested.replace("dynamic-slice", "dot"), SLICE_ENTRY, inner))
        == 8 * 4 * 4 + 4 + 4 * 2
    )


OFFLOAD = """
ENTRY %main (p: bf16[80,64], x: bf16[1,64], i: s32[]) -> bf16[80,64] {
  %p = bf16[80,64]{1,0:T(8,128)(2,1)S(5)} parameter(0)
  %x = bf16[1,64]{1,0:T(8,128)(2,1)} parameter(1)
  %i = s32[]{:T(128)S(6)} parameter(2)
  %put = ((bf16[80,64]{1,0:T(8,128)(2,1)S(5)}, bf16[1,64]{1,0:T(8,128)(2,1)}, s32[]{:T(128)}, s32[]{:T(128)}), bf16[80,64]{1,0:T(8,128)(2,1)S(5)}, u32[]{:S(2)}) dynamic-update-slice-start(%p, %x, %i, %i)
  %kept = bf16[80,64]{1,0:T(8,128)(2,1)S(5)} dynamic-update-slice-done(%put)
  %take = ((bf16[80,64]{1,0:T(8,128)(2,1)S(5)}, s32[]{:T(128)}, s32[]{:T(128)}), bf16[1,64]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) dynamic-slice-start(%kept, %i, %i), dynamic_slice_sizes={1,64}
  %taken = bf16[1,64]{1,0:T(8,128)(2,1)} dynamic-slice-done(%take)
  %fetch = (bf16[1,64]{1,0:T(8,128)(2,1)S(1)}, bf16[1,64]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%taken)
  %near = bf16[1,64]{1,0:T(8,128)(2,1)S(1)} copy-done(%fetch)
  %kernel = (bf16[1,64]{1,0:T(8,128)(2,1)S(1)}, f32[3]{0:T(128)}) custom-call(%near), custom_call_target="tpu_custom_call"
  %room = f32[1000]{0:T(1024)} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %t = (bf16[80,64]{1,0:T(8,128)(2,1)S(5)}) tuple(%kept)
}
"""  # noqa: E501


def test_the_host_the_chip_and_the_device_each_have_their_own_bytes():
    found = parse("HloModule m\n" + OFFLOAD)
    assert host_bytes(found) == 128 + 128  # a row put, a row taken
    # Read to be put, written when taken, fetched, and the kernel's result.
    assert memory_bytes(found) == 128 + 128 + 128 + 12


def test_a_cards_network_buffers_are_its_memory():
    text = """HloModule m

ENTRY %main (p: f32[9]) -> f32[9] {
  %p = f32[9]{0} parameter(0)
  ROOT %c = f32[9]{0:S(1)} copy(%p)
}
"""
    assert memory_bytes(parse(text)) == 72


def test_a_fusion_that_carries_a_gather_on_moves_its_own_product_alone():
    """The bytes of the collective are those of the fusion that begins it."""
    body = """(p: bf16[8], o: bf16[32], x: f32[16]) -> (f32[16], bf16[8], bf16[32]) {
  %p = bf16[8]{0:T(8,128)(2,1)} parameter(0)
  %o = bf16[32]{0:T(8,128)(2,1)} parameter(1)
  %x = f32[16]{0:T(128)} parameter(2)
  %y = f32[16]{0:T(128)} tanh(%x)
  %g = bf16[32]{0:T(8,128)(2,1)} all-gather(%p), dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %t = (f32[16]{0:T(128)}, bf16[8]{0:T(8,128)(2,1)}, bf16[32]{0:T(8,128)(2,1)}) tuple(%y, %p, %g)"""  # noqa: E501
    entry = """(p: bf16[8], o: bf16[32], x: f32[16]) -> f32[16] {
  %p = bf16[8]{0:T(8,128)(2,1)} parameter(0)
  %o = bf16[32]{0:T(8,128)(2,1)} parameter(1)
  %x = f32[16]{0:T(128)} parameter(2)
  ROOT %f = (f32[16]{0:T(128)}, bf16[8]{0:T(8,128)(2,1)}, bf16[32]{0:T(8,128)(2,1)}) fusion(%p, %o, %x), kind=kOutput, calls=%body"""  # noqa: E501
    assert memory_bytes(module(body, entry)) == 2 * 64
    begin = """(p: bf16[8]) -> (bf16[8], bf16[32], u32[]) {
  %p = bf16[8]{0:T(8,128)(2,1)} parameter(0)
  %g = bf16[32]{0:T(8,128)(2,1)} all-gather(%p), dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %c = (bf16[8]{0:T(8,128)(2,1)}, bf16[32]{0:T(8,128)(2,1)}, u32[]{:S(2)}) custom-call(%g), custom_call_target="AsyncCollectiveStart\""""  # noqa: E501
    entry = """(p: bf16[8]) -> bf16[8] {
  %p = bf16[8]{0:T(8,128)(2,1)} parameter(0)
  ROOT %f = (bf16[8]{0:T(8,128)(2,1)}, bf16[32]{0:T(8,128)(2,1)}, u32[]{:S(2)}) fusion(%p), kind=kCustom, calls=%body"""  # noqa: E501
    assert memory_bytes(module(begin, entry)) == 2 * 8 + 2 * 32
