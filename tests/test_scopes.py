"""Every part of a step has its name in the program, whatever the model."""

import re
from dataclasses import asdict, replace
from typing import Any

import jax
import pytest

from research.experiment.config import make_experiment
from research.fit.compile import plan, trace
from research.fit.targets import parse_target
from research.scopes import SCOPES, parts_of, scope
from tests.families import FAMILIES

OBJECTIVES = {
    "decoder": "causal_lm",
    "encoder": "masked_lm",
    "encoder_decoder": "span_corruption",
}
# Every model has these, in a run with dropout.
ALWAYS = {"embed", "layers", "norm", "attention", "projections", "scores", "output", "dropout"}
ALWAYS |= {"head", "loss", "optimizer"}


def lowered_step(family: str, **sections: Any) -> jax.stages.Lowered:
    """The train step of a family, with dropout and the other settings of `sections`."""
    model = replace(FAMILIES[family], dropout=0.1)
    values = {
        "model": asdict(model),
        "objective": {"name": OBJECTIVES[model.kind]},
        "data": {"batch_size": 2, "sequence_length": 16},
    }
    program = plan(make_experiment(values | sections), parse_target("cpu"))
    with jax.set_mesh(program.mesh):
        return trace(program).lower()


def qlora_step() -> jax.stages.Lowered:
    return lowered_step(
        "llama2_7b",
        tune={"method": "lora"},
        quantize={"format": "nf4", "group": 16},
        execution={"remat": "full"},
    )


def found_in(hlo: str) -> set[tuple[str, ...]]:
    """The scopes around each operation of a module."""
    return {parts_of(name) for name in re.findall(r'op_name="([^"]*)"', hlo)}


def wanted_of(family: str) -> set[str]:
    c = FAMILIES[family]
    wanted = ALWAYS | ({"moe", "routing", "experts"} if c.experts else {"mlp"})
    wanted |= {"mlp"} if c.shared_d_ff or c.dense_layers else set()
    wanted |= {"rotation"} if c.position == "rope" else set()
    return wanted | ({"encoder", "cross"} if c.kind == "encoder_decoder" else set())


def loss_of(family: str) -> tuple[str, ...]:
    """Where the loss is computed: inside the head, or after logits to which a bias was added."""
    c = FAMILIES.get(family)
    return ("loss",) if c and (c.mlm_head or c.head_bias) else ("head", "loss")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_of_a_familys_step_is_named(family):
    # Before optimization, which takes seconds a family; see the next test.
    hlo = lowered_step(family).as_text("hlo", debug_info=True)
    assert set().union(*found_in(hlo)) == wanted_of(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, "qlora"])
def test_optimization_keeps_the_names_and_nests_them(family):
    lowered = qlora_step() if family == "qlora" else lowered_step(family)
    before = found_in(lowered.as_text("hlo", debug_info=True))
    # The names are in the HLO; the machine code made of it may as well be slow.
    after = found_in(lowered.compile({"xla_backend_optimization_level": 0}).as_text())
    assert set().union(*after) == set().union(*before)
    assert {("layers", "attention", "scores"), loss_of(family)} <= after


def test_adapters_codes_and_recomputation_are_named():
    hlo = qlora_step().as_text("hlo", debug_info=True)
    # The names of a loop's body begin inside the loop until it is compiled.
    inner = {("attention", "projections", "adapter"), ("mlp", "adapter"), ("mlp", "dequantize")}
    assert inner <= found_in(hlo)
    # Work that is done again for the backward pass has the name of what it repeats.
    again = re.findall(r'op_name="([^"]*rematted_computation[^"]*)"', hlo)
    assert {("mlp",), ("attention", "norm")} <= set(map(parts_of, again))


@pytest.mark.parametrize(
    ("op_name", "parts"),
    [
        ("jit(train_step)/jvp(layers)/while/body/attention/dot_general", ("layers", "attention")),
        ("jit(f)/transpose(jvp(head))/loss/exp", ("head", "loss")),
        ("jit(f)/vmap(jvp(jit(norm)))/jit(mlp)/norm/mul", ("norm",)),
        ("jit(f)/attentive/add", ()),
    ],
)
def test_scopes_are_read_from_the_names_of_operations(op_name, parts):
    assert parts_of(op_name) == parts


def test_a_name_that_is_not_documented_is_refused():
    with pytest.raises(ValueError, match="add it to SCOPES"):
        scope("something")
    assert all(SCOPES.values())
