"""Collectives of compiled steps: bytes by hand, loops against their unrolled form, and every form
that a compiler prints.

The snippets are cut from what jax 0.10.2 prints for `compiled.as_text()` with its CUDA plugin and
libtpu 0.0.42, shapes made small; tests/fit/hlo/layers.py compiles the like anew where the compilers
are installed.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.fit.collectives import (
    Collective,
    collective_bytes,
    collectives,
)
from research.fit.hlo.groups import parse_groups
from research.fit.hlo.text import parse
from tests.fit.hlo.layers import D, F, L, measured

HEAD = "HloModule jit_f, is_scheduled=true, num_partitions=4\n"


def found(text: str) -> list[Collective]:
    return collectives(parse(HEAD + text))


# Of float32 weights [L, D, F] and [L, F, D], gathered in bfloat16 and used once forward and,
# recomputed, once backward.
WEIGHTS = 2 * L * D * F
# Bytes of an element that a device gathers, and of a gradient that it reduces. The CPU's products
# are float32.
SIZES = {"cpu:8": (8, 4, 4), "h100:8": (8, 2, 2), "v5p:2x2x1": (4, 2, 2), "v5e:2x2": (4, 2, 2)}


@pytest.mark.parametrize("target", SIZES)
@pytest.mark.parametrize("stack", ["scanned", "unrolled"])
def test_bytes_of_a_sharded_stack_are_those_by_hand(target, stack):
    devices, gathered, reduced = SIZES[target]
    steps = measured(target)
    forward, gradient = steps[f"forward_{stack}"]["bytes"], steps[f"gradient_{stack}"]["bytes"]
    assert forward == {
        "all-gather": WEIGHTS // devices * gathered,
        "all-reduce": 4,
    }  # and the loss, a scalar
    assert gradient.pop("all-gather") == 2 * WEIGHTS // devices * gathered
    # Compilers differ in which gradients they scatter and which they reduce whole and slice: h100
    # scatters all, cpu none.
    assert (
        set(gradient) <= {"reduce-scatter", "all-reduce"}
        and sum(gradient.values()) == WEIGHTS * reduced
    )
    assert ("all-reduce" in gradient) == (target != "h100:8") and (
        "reduce-scatter" in gradient
    ) == (target != "cpu:8")
    assert steps[f"gradient_{stack}"]["groups"] == [list(range(devices))]


@pytest.mark.parametrize("target", SIZES)
def test_a_stack_moves_as_much_scanned_as_unrolled(target):
    steps = measured(target)
    for name in ("forward", "gradient"):
        for key in ("bytes", "wire", "groups"):
            assert steps[f"{name}_scanned"][key] == steps[f"{name}_unrolled"][key]


WIRE = [  # kind, the attributes of its operation, bytes on the wire of 800 bytes in groups of four
    ("all-gather", "dimensions={0}", 2400),
    ("reduce-scatter", "dimensions={0}, to_apply=%add", 600),
    ("all-reduce", "to_apply=%add", 1200),
    ("all-to-all", "dimensions={0}", 600),
]


@pytest.mark.parametrize(("kind", "attributes", "wire"), WIRE)
@pytest.mark.parametrize("wrapped", [False, True])
def test_bytes_on_the_wire(kind, attributes, wire, wrapped):
    opcode, groups = kind + "-start" * wrapped, "replica_groups={{0,1,2,3}}"
    done = f"  %done = f32[200]{{0}} {kind}-done(%x)\n" if wrapped else ""
    text = f"""
ENTRY %main (p: f32[200]) -> f32[200] {{
  %p = f32[200]{{0}} parameter(0)
  %x = f32[200]{{0}} {opcode}(%p), {groups}, {attributes}, metadata={{op_name="jit(f)/here"}}
{done}}}
"""
    assert found(text) == [Collective(kind, 800, wire, 1, ((0, 1, 2, 3),), "jit(f)/here")]
    assert found(text.replace("{{0,1,2,3}}", "{{0},{1},{2},{3}}")) == []


def test_a_permute_between_devices_counts_and_one_to_itself_does_not():
    text = """
ENTRY %main (p: bf16[100]) -> bf16[100] {
  %p = bf16[100]{0} parameter(0)
  ROOT %x = bf16[100]{0} collective-permute(%p), channel_id=1, source_target_pairs={{0,1},{1,0},{2,2}}
}
"""  # noqa: E501
    assert found(text) == [Collective("collective-permute", 200, 200, 1, ((0, 1), (1, 0)))]
    assert found(text.replace("{{0,1},{1,0},{2,2}}", "{{0,0},{1,1}}")) == []


def test_a_combined_start_counts_all_that_it_takes_and_its_done_nothing():
    """CUDA gathers one weight for two uses twice, in one pair."""
    text = """
ENTRY %main (p: bf16[8], q: bf16[16]) -> bf16[32] {
  %p = bf16[8]{0} parameter(0)
  %q = bf16[16]{0} parameter(1)
  %s = ((bf16[8]{0}, bf16[16]{0}, bf16[8]{0}), (bf16[32]{0}, bf16[64]{0}, bf16[32]{0})) all-gather-start(%p, %q, %p), channel_id=5, replica_groups=mesh['axis_0'=4,'axis_1'=1] {'axis_0'}, dimensions={0}
  %d = (bf16[32]{0}, bf16[64]{0}, bf16[32]{0}) all-gather-done(%s)
  ROOT %r = bf16[32]{0} get-tuple-element(%d), index=0
}
"""  # noqa: E501
    assert [(one.kind, one.operand_bytes, one.wire_bytes) for one in found(text)] == [
        ("all-gather", 64, 192)
    ]


@pytest.mark.parametrize("rows", [(8, 64), (64, 8)])
def test_a_ragged_exchange_moves_the_rows_that_both_sides_have_room_for(rows):
    text = f"""
ENTRY %main (p: bf16[{rows[0]},4], o: bf16[{rows[1]},4], s: s32[8]) -> bf16[{rows[1]},4] {{
  %p = bf16[{rows[0]},4]{{1,0}} parameter(0)
  %o = bf16[{rows[1]},4]{{1,0}} parameter(1)
  %s = s32[8]{{0}} parameter(2)
  ROOT %x = bf16[{rows[1]},4]{{1,0}} ragged-all-to-all(%p, %o, %s, %s, %s, %s), replica_groups={{{{0,1,2,3}}}}
}}
"""  # noqa: E501
    assert found(text) == [Collective("all-to-all", 64, 48, 1, ((0, 1, 2, 3),))]


SCATTER = """
%all-reduce-scatter (input: bf16[8192,4]) -> bf16[2128,4] {
  %input = bf16[8192,4]{1,0:T(8,128)(2,1)} parameter(0)
  %zero = bf16[] constant(0)
  %pad = bf16[8512,4]{1,0:T(8,128)(2,1)} pad(%input, %zero), padding=0_320x0_0
  %all-reduce = bf16[8512,4]{1,0:T(8,128)(2,1)} all-reduce(%pad), channel_id=3, replica_groups={{0,1,2,3}}, to_apply=%add
  %id = u32[] partition-id()
  %rows = u32[] constant(2128)
  %offset = u32[]{:T(128)} multiply(%id, %rows)
  %none = u32[] constant(0)
  ROOT %slice = bf16[2128,4]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce, %offset, %none), dynamic_slice_sizes={2128,4}
}

ENTRY %main (p: bf16[8192,4]) -> bf16[240,4] {
  %p = bf16[8192,4]{1,0:T(8,128)(2,1)} parameter(0)
  %fusion = bf16[2128,4]{1,0:T(8,128)(2,1)} fusion(%p), kind=kCustom, calls=%all-reduce-scatter, metadata={op_name="jit(f)/bf,fd->bd/dot_general"}
  %rest = bf16[240,4]{1,0:T(8,128)(2,1)} slice(%fusion), slice={[1888:2128], [0:4]}
  %start = (bf16[240,4]{1,0:T(8,128)(2,1)}, bf16[240,4]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%rest), channel_id=1, source_target_pairs={{0,1},{1,2},{2,3}}
  ROOT %done = bf16[240,4]{1,0:T(8,128)(2,1)} collective-permute-done(%start)
}
"""  # noqa: E501


def test_a_fused_all_reduce_of_which_a_slice_is_used_is_a_reduce_scatter():
    scatter, permute = found(SCATTER)
    assert (scatter.kind, scatter.operand_bytes, scatter.wire_bytes) == (
        "reduce-scatter",
        8512 * 8,
        8512 * 8 * 3 // 4,
    )
    # Rows that the padding moved to another device go back by a permute, which tells whose they
    # are.
    assert (permute.kind, permute.wire_bytes, permute.op_name) == (
        "collective-permute",
        240 * 8,
        scatter.op_name,
    )
    assert scatter.op_name == "jit(f)/bf,fd->bd/dot_general"


def test_an_all_reduce_of_which_more_is_used_stays_one():
    text = SCATTER.replace("ROOT %slice = bf16[2128,4]", "%slice = bf16[2128,4]").replace(
        "sizes={2128,4}\n",
        "sizes={2128,4}\n  ROOT %sum = bf16[2128,4]{1,0} custom-call(%slice, %all-reduce)\n",
    )
    assert found(text)[0].kind == "all-reduce"
    assert found(SCATTER.replace(" dynamic-slice(", " custom-call("))[0].kind == "all-reduce"


def test_an_asynchronous_chain_of_fusions_is_one_collective():
    """Of two gathers on the same channel, in a loop that a TPU unrolled, each begins once."""
    gather = (
        "all-gather(%p), channel_id=3, replica_groups=mesh['a'=1,'b'=4] {'b'}, dimensions={0}, "
        'frontend_attributes={chain_id="0"}'
    )
    begin = """
%begin.N (p: bf16[8]) -> (bf16[8], bf16[32], u32[]) {
  %p = bf16[8]{0:T(8,128)(2,1)S(1)} parameter(0)
  %gather = bf16[32]{0:T(8,128)(2,1)} GATHER
  ROOT %call = (bf16[8]{0:T(8,128)(2,1)S(1)}, bf16[32]{0:T(8,128)(2,1)}, u32[]{:S(2)}) custom-call(%gather), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.N (p: bf16[8], o: bf16[32], s: u32[]) -> (bf16[8], bf16[32], u32[]) {
  %p = bf16[8]{0:T(8,128)(2,1)S(1)} parameter(0)
  %o = bf16[32]{0:T(8,128)(2,1)} parameter(1)
  %s = u32[]{:S(2)} parameter(2)
  %gather = bf16[32]{0:T(8,128)(2,1)} GATHER
  ROOT %t = (bf16[8]{0:T(8,128)(2,1)S(1)}, bf16[32]{0:T(8,128)(2,1)}, u32[]{:S(2)}) tuple(%p, %gather, %s)
}

%end.N (p: bf16[8], o: bf16[32], s: u32[]) -> bf16[32] {
  %p = bf16[8]{0:T(8,128)(2,1)S(1)} parameter(0)
  %o = bf16[32]{0:T(8,128)(2,1)} parameter(1)
  %s = u32[]{:S(2)} parameter(2)
  %gather = bf16[32]{0:T(8,128)(2,1)} GATHER
  ROOT %call = bf16[32]{0:T(8,128)(2,1)} custom-call(%p, %o, %gather, %s), custom_call_target="AsyncCollectiveDone"
}
""".replace("GATHER", gather)  # noqa: E501
    calls = "".join(
        f"  %f{n}{part} = (bf16[8]{{0}}) fusion(%w), kind=kCustom, calls=%{part}.{n}\n"
        for n in (1, 2)
        for part in ("begin", "async_collective_fusion", "end")
    )
    entry = (
        "\nENTRY %main (w: bf16[8]) -> bf16[8] {\n  %w = bf16[8]{0} parameter(0)\n" + calls + "}\n"
    )
    assert collective_bytes(
        found(begin.replace(".N", ".1") + begin.replace(".N", ".2") + entry)
    ) == {"all-gather": 2 * 16}


def test_what_crosses_slices_counts_once_as_the_collective_it_says_it_is():
    text = """
ENTRY %main (p: bf16[8,4]) -> bf16[16,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  %a = token[] after-all()
  %send = (bf16[8,4]{1,0}, u32[], token[]) send(%p, %a), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-gather.30_0",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_GATHER"}
  %recv = (bf16[16,4]{1,0}, u32[], token[]) recv(%a), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-gather.30_0",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_GATHER"}
  %sent = token[] send-done(%send), channel_id=2
  %done = (bf16[16,4]{1,0}, token[]) recv-done(%recv), channel_id=1
  ROOT %r = bf16[16,4]{1,0} get-tuple-element(%done), index=0
}
"""  # noqa: E501
    assert found(text) == [Collective("all-gather", 64, 64, 1, ((0, 4), (1, 5), (2, 6), (3, 7)))]


@pytest.mark.parametrize(
    ("attributes", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, dimensions={0}", ((0, 1), (2, 3))),
        ("replica_groups={}, to_apply=%add", ((0, 1, 2, 3),)),
        ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x={0}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", ((0, 1, 2, 3),)),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(2)2}, x", ((0, 2), (1, 3), (4, 6), (5, 7))),
        ("replica_groups=mesh[a=2,b=2], device_ids=(3,2,1,0) {b}, x", ((3, 2), (1, 0))),
        ("replica_groups=mesh[a=2,b=2], device_ids=([2,2]<=[2,2]T(1,0)) {b}, x", ((0, 2), (1, 3))),
        (
            "replica_groups=mesh[a=1,b=2,c=2], device_ids=([2,2]T(1,0)) {'a','c'}, x",
            ((0, 2), (1, 3)),
        ),
    ],
)
def test_groups_in_every_form(attributes, groups):
    assert parse_groups(attributes, 4) == groups


# Three dimensions of a mesh, an order of them, and how many devices are in a group.
@given(
    st.lists(st.integers(1, 4), min_size=3, max_size=3),
    st.permutations([0, 1, 2]),
    st.integers(0, 3),
)
def test_groups_of_reshaped_devices_are_numpys(sizes, order, last):
    rows = (
        np.arange(np.prod(sizes))
        .reshape(sizes)
        .transpose(order)
        .reshape(-1, int(np.prod([sizes[axis] for axis in order[last:]])))
    )
    dims, axes = (",".join(map(str, numbers)) for numbers in (sizes, order))
    text = f"replica_groups=[{len(rows)},{rows.shape[1]}]<=[{dims}]T({axes})"
    assert parse_groups(text, 0) == tuple(map(tuple, rows))
    inside = [
        axis for axis in range(3) if axis in order[last:]
    ]  # a mesh names its axes in its own order
    rows = (
        np.arange(np.prod(sizes))
        .reshape(sizes)
        .transpose([axis for axis in range(3) if axis not in inside] + inside)
    )
    rows = rows.reshape(-1, int(np.prod([sizes[axis] for axis in inside])))
    text = "replica_groups=mesh[{}] {{{}}}".format(
        ",".join(f"'x{axis}'={size}" for axis, size in enumerate(sizes)),
        ",".join(f"'x{axis}'" for axis in inside),
    )
    assert parse_groups(text, 0) == tuple(map(tuple, rows))
