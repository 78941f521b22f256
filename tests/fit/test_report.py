"""What fit says of a step: the least that a sharding needs and the roofline by hand, and the
answer's form."""

import dataclasses
import math

import jax
import pytest

from research.fit.collectives import Collective
from research.fit.compile import plan, trace
from research.fit.measure import measure
from research.fit.minimal_traffic import least_bytes
from research.fit.report import Fit
from research.fit.roofline import Roofline, network_seconds, peak, roofline
from research.fit.table import table
from research.fit.targets import parse_target
from research.training.state import device_bytes
from tests.configs import experiment
from tests.fit.fits import fit_json
from tests.fit.processes import fit, need_compiler

TINY = {"model.layers": 2, "model.d_model": 64, "model.d_ff": 128, "model.vocab_size": 512}
KEYS = {
    "target", "fits", "device_bytes", "host_bytes", "flops", "recompute_ratio", "collective_bytes",
    "collective_ratio", "step_seconds_bound", "tokens_per_second_bound",
}  # fmt: skip


def tiny(**changes):
    return experiment(
        "pretrain", "model=llama3_8b,smoke", **{"precision.compute": "bfloat16", **changes}
    )


def weights(program) -> tuple[int, int]:
    """(elements of the matrices, of the vectors) that are trained."""
    leaves = jax.tree.leaves(program.trainable_specs)
    split = [math.prod(leaf.shape) for leaf in leaves if "embed" in leaf.axes]
    return sum(split), sum(math.prod(leaf.shape) for leaf in leaves) - sum(split)


def test_the_least_of_fully_sharded_parameters():
    program = plan(tiny(mesh="fsdp:8"), parse_target("cpu:8"))
    matrices, vectors = weights(program)
    # Two gathers of shards in bfloat16, a reduce-scatter of whole gradients in float32, an
    # all-reduce of the vectors'.
    assert least_bytes(program) == 2 * 2 * matrices / 8 + 4 * matrices + 4 * vectors


def test_the_least_of_data_parallelism_is_one_all_reduce():
    program = plan(tiny(mesh="data:8"), parse_target("cpu:8"))
    assert least_bytes(program) == 4 * sum(weights(program))


def test_the_least_of_tensor_parallelism_has_the_activations_of_each_block_and_pass():
    program = plan(tiny(mesh="tensor:4"), parse_target("cpu:4"))
    tokens, layers, d_model = 8 * 64, 2, 64
    # Attention and feed-forward, forward and backward: a gather of quarters and a scatter of the
    # whole, in bfloat16.
    assert least_bytes(program) == 2 * layers * 2 * tokens * d_model * 2 * (1 + 1 / 4)


def test_one_device_needs_none():
    assert least_bytes(plan(tiny(), parse_target("cpu"))) == 0


def test_the_roofline_by_hand():
    target = parse_target("h100:8")
    gather = Collective("all-gather", 10, 70 * 10**9, 1, [list(range(8))])
    found = roofline(
        target, {"bfloat16": 8 * 989.4e12 * 0.5, "int8": 8 * 1978.9e12 * 0.25}, 3350e9 * 2, [gather]
    )
    assert math.isclose(found.compute, 0.75) and math.isclose(found.memory, 2.0)
    assert (
        math.isclose(found.network, 70 / 450)
        and found.bound == "memory"
        and found.seconds == found.memory
    )
    assert roofline(parse_target("cpu"), {"float32": 1.0}, 1, []) == Roofline(None, None, None)
    assert Roofline(None, None, None).bound is None and Roofline(None, None, None).seconds is None


def test_what_crosses_nodes_takes_the_network_between_them():
    target = parse_target("h100:2x8")
    within = Collective("all-reduce", 1, 450 * 10**9, 2, [list(range(8)), list(range(8, 16))])
    assert math.isclose(network_seconds(target, [within]), 2.0)
    across = dataclasses.replace(
        within, times=1, groups=[[device, device + 8] for device in range(8)]
    )
    assert math.isclose(network_seconds(target, [across]), 450 / 50)  # 400 Gbit/s a card
    # Of a group over all cards, each of a node fetches an eighth of what its node has not.
    everyone = dataclasses.replace(across, groups=[list(range(16))])
    assert math.isclose(network_seconds(target, [everyone]), max(1.0, 450 / 50 / 8))


def test_types_without_units_of_their_own_run_as_the_next():
    peaks = {"bfloat16": 100.0, "tfloat32": 50.0}
    assert (
        peak(peaks, "float32") == 50
        and peak(peaks, "float8_e4m3fn") == 100
        and peak({"float16": 65.0}, "bfloat16") == 65
    )


def test_measured_on_the_cpu_it_has_the_keys_that_others_read():
    asked, stages = tiny(), []
    said = measure(asked, parse_target("cpu"), tell=stages.append)
    answer = said.to_json()
    assert KEYS <= answer.keys() and stages == ["tracing", "lowering", "compiling", "reading"]
    assert answer["compile_seconds"].keys() == {"trace", "lower", "compile"}
    held = answer["device_bytes"]
    assert held.keys() == {
        "params",
        "frozen",
        "optimizer",
        "gradients",
        "temporaries",
        "total",
        "capacity",
    }
    assert held["total"] == sum(
        value for name, value in held.items() if name not in ("total", "capacity")
    )
    program = plan(asked, parse_target("cpu"))
    assert held["params"] == device_bytes(program.state.trainable) and held[
        "optimizer"
    ] == device_bytes(program.state.optimizer)
    with jax.set_mesh(program.mesh):
        text = trace(program).lower().as_text()
    kept = dataclasses.replace(said, target="kept")
    assert (
        measure(
            asked, parse_target("cpu"), recall=lambda lowered: kept if lowered == text else None
        )
        is kept
    )
    assert Fit.from_json(answer) == said


def test_a_price_is_that_of_all_chips():
    one = Fit.from_json(fit_json(price_per_hour=3.6))
    # 64 chips at 3.6 an hour are 0.064 a second, and a second is 524,288 / 1.25 tokens.
    assert math.isclose(one.cost_per_billion_tokens, 0.064 * 1e9 / (524288 / 1.25))
    assert math.isclose(one.mfu, 3.0e16 / (2.9376e16 * 1.25)) and one.roofline.bound == "compute"
    assert "fits: 10.00 GiB of 95.00 GiB" in table(one) and "<- bounds" in table(one)
    assert not Fit.from_json(fit_json(capacity=1)).fits


# Pretraining as shipped: target, how it is laid out, the bars of recomputation and of collectives.
BARS = [
    ("llama3_8b", "h100:8", 1.34, 1.15),
    pytest.param("llama3_8b", "v5p:4x4x4", 1.34, 1.15, marks=pytest.mark.slow),
    pytest.param("llama3_8b", "v6e:16x16", 1.34, 1.15, marks=pytest.mark.slow),
    pytest.param("llama3_8b", "v5e:16x16", 1.34, 1.15, marks=pytest.mark.slow),
    pytest.param("mixtral_8x7b", "v5p:4x4x4", 1.34, 1.15, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("model", "target", "recompute", "collectives"), BARS)
def test_pretraining_fits_recomputes_and_communicates_little(model, target, recompute, collectives):
    need_compiler(target)
    # The policy that recomputes; a run takes a lighter one where it fits.
    kept = ("--config.execution.remat=full", "--config.execution.head_tokens=512")
    code, answer = fit("pretrain", f"model={model}", target, *kept)
    assert code == 0 and answer["fits"]
    assert (
        1 < answer["recompute_ratio"] <= recompute
        and 0.9 < answer["collective_ratio"] <= collectives
    )
    assert (
        answer["mfu_bound"] > 0.53
    )  # the best that MaxText reports for these models on these chips
