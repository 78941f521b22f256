"""Reading the text of HLO modules: shapes, trip counts, dialects.

The snippets are cut from what jax 0.10.2 prints for `compiled.as_text()` of small scans, with its
CPU compiler, its CUDA plugin and libtpu 0.0.42, names shortened; tests/fit/hlo/layers.py compiles
the like anew where the compilers are installed.
"""

import jax
import jax.numpy as jnp
import pytest

from research.fit.hlo.text import parse
from tests.fit.hlo.layers import L, measured

# A TPU's loop says no trip count. Its counter starts at a copy of a constant, its step and its
# bound lie in the loop's state.
TPU_LOOP = """HloModule jit_f, is_scheduled=true, num_partitions=4

%body (p: (s32[], f32[8], s32[], s32[])) -> (s32[], f32[8], s32[], s32[]) {
  %p = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}, s32[]{:T(128)}, /*index=3*/s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[8]{0:T(128)S(1)} get-tuple-element(%p), index=1
  %step = s32[]{:T(128)} get-tuple-element(%p), index=2
  %bound = s32[]{:T(128)} get-tuple-element(%p), index=3
  %copy.1 = s32[]{:T(128)S(6)} copy(%i)
  %next = s32[]{:T(128)} add(%copy.1, %step)
INNER
  ROOT %out = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}, s32[]{:T(128)}, /*index=3*/s32[]{:T(128)}) tuple(%next, %y, %step, %bound)
}

%cond (p.1: (s32[], f32[8], s32[], s32[])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}, s32[]{:T(128)}, /*index=3*/s32[]{:T(128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %bound.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=3
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %bound.1), direction=LT, metadata={op_name="jit(f)/while/cond/lt"}
}

ENTRY %main (x.1: f32[8]) -> f32[8] {
  %x.1 = f32[8]{0:T(128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = s32[]{:T(128)} copy(%zero)
  %two = s32[]{:T(128)} constant(2)
  %bound.2 = s32[]{:T(128)} BOUND
  %state = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}, s32[]{:T(128)}, /*index=3*/s32[]{:T(128)}) tuple(%start, %x.1, %two, %bound.2)
  %while = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}, s32[]{:T(128)}, /*index=3*/s32[]{:T(128)}) while(%state), condition=%cond, body=%body, metadata={op_name="jit(f)/while"}
  ROOT %result = f32[8]{0:T(128)} get-tuple-element(%while), index=1
}
"""  # noqa: E501
PLAIN = "  %y = f32[8]{0:T(128)S(1)} negate(%x)"
# A kernel's description has line breaks in it, and a brace at the start of a line.
KERNEL = """  %y = f32[8]{0:T(128)S(1)} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="jit(f)/kernel"}, backend_config={"custom_call_config": {"body": "TUzvUgFN"}}"""  # noqa: E501
# The loop inside starts at a number of the state of the loop outside, which hands it on as it is.
NESTED = """  %state.1 = (s32[]{:T(128)}, s32[]{:T(128)}) tuple(%step, %bound)
  %while.1 = (s32[]{:T(128)}, s32[]{:T(128)}) while(%state.1), condition=%cond.1, body=%body.1
  %y = f32[8]{0:T(128)S(1)} negate(%x)"""
NESTED_COMPUTATIONS = """
%body.1 (q: (s32[], s32[])) -> (s32[], s32[]) {
  %q = (s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  %one = s32[]{:T(128)} constant(1)
  %k = s32[]{:T(128)} add(%j, %one)
  %end = s32[]{:T(128)} get-tuple-element(%q), index=1
  ROOT %out.1 = (s32[]{:T(128)}, s32[]{:T(128)}) tuple(%k, %end)
}

%cond.1 (q.1: (s32[], s32[])) -> pred[] {
  %q.1 = (s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %j.1 = s32[]{:T(128)} get-tuple-element(%q.1), index=0
  %end.1 = s32[]{:T(128)} get-tuple-element(%q.1), index=1
  ROOT %ge = pred[]{:T(512)} compare(%end.1, %j.1), direction=GT
}

%body """


def loop(inner=PLAIN, bound="constant(24)"):
    text = TPU_LOOP.replace("INNER", inner).replace("BOUND", bound)
    return parse(text.replace("\n%body ", NESTED_COMPUTATIONS, 1) if inner is NESTED else text)


def test_a_loop_is_counted_through_its_state():
    assert loop().executions == {"main": 1, "body": 12, "cond": 13}


def test_nested_loops_multiply():
    # Outside 12 trips, inside from 2 to 24.
    assert loop(NESTED).executions == {
        "main": 1,
        "body": 12,
        "cond": 13,
        "body.1": 12 * 22,
        "cond.1": 12 * 23,
    }


def test_a_loop_that_cannot_be_counted_is_refused_by_name():
    with pytest.raises(ValueError, match=r"loop while \(jit\(f\)/while\) runs a number of times"):
        loop(bound="convert(%x.1)").executions


def test_a_kernel_with_line_breaks_ends_nothing():
    one = loop(KERNEL).computations["body"].instructions["y"]
    assert (
        one.op_name == "jit(f)/kernel"
        and one.attribute("custom_call_target") == '"tpu_custom_call"'
    )
    assert loop(KERNEL).executions["body"] == 12


def test_what_is_no_module_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        parse("HloModule empty")


@pytest.mark.parametrize(
    ("shape", "nbytes", "spaces"),
    [
        ("f32[12,128]{1,0:T(8,128)S(1)SC(0:6)}", [6144], [1]),
        ("bf16[80,1,2048]{2,1,0:T(8,128)(2,1)S(5)}", [327680], [5]),
        ("s4[6,5]{1,0:T(64,128)(8,1)E(4)}", [15], [0]),  # packed
        ("s4[6,5]{1,0}", [30], [0]),  # without E(4) an element takes a byte
        ("pred[]", [1], [0]),
        ("f8e4m3fn[3,4]{1,0}", [12], [0]),
        ("c64[2]{0}", [16], [0]),
        ("(token[], opaque[], f32[0,4]{1,0})", [0, 0, 0], [0, 0, 0]),
        (
            "((f32[2]{0}, bf16[3]{0:S(5)}), (f32[<=4]{0}, /*index=3*/u32[]{:S(2)}))",
            [8, 6, 16, 4],
            [0, 5, 0, 2],
        ),
    ],
)
def test_bytes_and_memories_of_a_shape(shape, nbytes, spaces):
    module = parse(
        f"HloModule m\n\nENTRY %main () -> f32[] {{\n  ROOT %x = {shape} custom-call()\n}}\n"
    )
    arrays = module.computations["main"].root.arrays
    assert [array.nbytes for array in arrays] == nbytes and [
        array.space for array in arrays
    ] == spaces


@pytest.mark.parametrize("larger_first", [False, True])
def test_of_a_conditional_the_larger_branch_runs(larger_first):
    branches = [lambda x: x, lambda x: jnp.sort(jnp.sin(x) @ x)][:: -1 if larger_first else 1]
    step = jax.jit(lambda p, x: jax.lax.cond(p, *branches, x))
    module = parse(step.lower(True, jnp.ones((64, 64))).compile().as_text())
    branches = next(one.calls for _, one, _ in module.run() if one.opcode == "conditional")
    ran = [branch for branch in branches if branch in module.executions]
    made = [
        sum(one.nbytes for one in module.computations[branch].instructions.values())
        for branch in branches
    ]
    assert len(branches) == 2 and ran == [branches[made.index(max(made))]]


@pytest.mark.parametrize("target", ["cpu:8", "h100:8", "v5p:2x2x1", "v5e:2x2"])
def test_a_scan_runs_as_often_as_it_has_layers(target):
    found = measured(target)
    for name in ("forward", "gradient"):
        assert found[f"{name}_scanned"]["trips"] == [
            1,
            L,
            L + 1,
        ]  # the condition once more than the body
        assert found[f"{name}_unrolled"]["trips"] == [1]
