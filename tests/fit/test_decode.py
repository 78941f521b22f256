"""Decoding compiled for a target: generation's own loop, and that it needs parameters, cache and
little else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from research.data.tokenizers import load_tokenizer
from research.fit.decode import plan_decode
from research.fit.flops import executed
from research.fit.targets import parse_target
from research.infer import decode, steps
from research.infer.sampling import SamplingConfig
from research.models.model import Model
from research.models.spec import initialize
from tests.configs import experiment
from tests.fit.processes import need_compiler

ROOT = Path(__file__).parent.parent.parent
# Eight layers: what is read out of the stack a layer at a time is then an eighth.
SIZES = {
    "layers": 8,
    "d_model": 256,
    "d_ff": 512,
    "heads": 8,
    "kv_heads": 4,
    "head_size": 32,
    "vocab_size": 512,
}
ROWS, LENGTH = 8, 1024


def llama(mesh: str = "", **changes):
    """A small LLaMA's pretraining, in float32: the CPU's products of bfloat16 are float32
    copies."""
    sizes = {f"model.{name}": size for name, size in SIZES.items()} | {
        "precision.compute": "float32",
        "mesh": mesh,
    }
    batch = {
        "data.batch_size": ROWS,
        "data.batch_size_per_device": 0,
        "data.sequence_length": LENGTH,
    }
    return experiment("pretrain", "model=llama3_8b", **{**sizes, **batch, **changes})


def total_bytes(program: jax.stages.Compiled) -> int:
    """What a device holds at a program's peak."""
    memory = program.memory_analysis()
    size = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    return size - memory.alias_size_in_bytes


# Alone a device has each layer apart and copies none. Over several it reads a layer's keys and
# values out of the stack and gathers a layer's weights, each an eighth of what there is; a copy of
# all of either would be over the quarter.
@pytest.mark.parametrize(
    ("mesh", "target", "part"),
    [("", "cpu", 0.01), ("tensor:4,fsdp:2", "cpu:8", 0.25), ("data:8", "cpu:8", 0.25)],
)
def test_memory_is_parameters_and_cache(mesh, target, part):
    chosen = parse_target(target)
    plan = plan_decode(llama(mesh), chosen)
    size = plan.params_bytes + plan.cache_bytes
    assert size <= total_bytes(plan.compile(chosen)) < (1 + part) * size


def test_bytes_are_those_of_the_model():
    plan = plan_decode(llama(), parse_target("cpu"))
    # Weights of the embedding, the head, and a layer's seven matrices; the norms' are a thousandth
    # of them.
    weights = 2 * 512 * 256 + 8 * 256 * (2 * 256 + 2 * 128 + 3 * 512)
    assert plan.params_bytes == pytest.approx(4 * weights, rel=0.002)
    entries = ROWS * LENGTH
    assert plan.cache_bytes == 4 * entries * (
        2 * 8 * 4 * 32 + 2
    )  # keys and values; two integers say what is in a slot
    half = plan_decode(llama(**{"precision.compute": "bfloat16"}), parse_target("cpu"))
    assert (
        half.params_bytes * 2 == plan.params_bytes
    )  # of the type that is computed in, not trained in
    split = plan_decode(llama("tensor:4,data:2"), parse_target("cpu:8"))
    assert split.cache_bytes == 4 * (entries // 2) * (
        2 * 8 * 32 + 2
    )  # a head of four, half of the rows
    assert plan.tokens == split.tokens == ROWS


def test_it_is_what_generation_calls(monkeypatch):
    tokenizer = load_tokenizer("bytes")
    sizes = {"model.vocab_size": tokenizer.vocab_size, "model.layers": 2}
    recipe = llama(**sizes, **{"data.batch_size": 2, "data.sequence_length": 64})
    plan = plan_decode(recipe, parse_target("cpu"))
    calls = []

    def watched(*given, **named):
        calls.append((jax.eval_shape(lambda *x: x, *given), named))
        return steps.advance(*given, **named)

    monkeypatch.setattr(decode, "advance", watched)
    model = Model(recipe.model, recipe.precision, recipe.execution)
    params = initialize(jax.random.key(0), model.specs(), jnp.float32)
    decode.generate(
        model, params, tokenizer, ["def f(", "x"], SamplingConfig(max_tokens=40)
    )  # which makes 64 slots
    (params, state, *rest), named = calls[0]
    assert named == {"model": plan.model, "sampling": SamplingConfig()}
    ours, generations = (
        jax.tree.map(lambda x: (x.shape, x.dtype), each)
        for each in ((plan.params, plan.state), (params, state))
    )
    assert ours == generations
    given = plan.traced.jaxpr.in_avals[-len(rest) :]
    assert [(x.shape, x.dtype) for x in given] == [(x.shape, x.dtype) for x in rest]


def test_a_turn_of_the_loop_multiplies_each_weight_once_a_row():
    plan = plan_decode(llama("tensor:4,fsdp:2"), parse_target("cpu:8"))
    weights = 512 * 256 + 8 * 256 * (
        2 * 256 + 2 * 128 + 3 * 512
    )  # a table is looked up, not multiplied
    attention = 8 * 2 * LENGTH * 8 * 32  # keys and values, of all slots
    # Rotary angles are products too, of a hundredth.
    assert sum(executed(plan.jaxpr, 8).values()) == pytest.approx(
        2 * ROWS * (weights + attention), rel=0.02
    )


@pytest.mark.parametrize("method", ["lora", "qlora", "prompt", "prefix", "adapter", "ia3"])
def test_what_fine_tuning_makes_is_decoded(method):
    sizes = {f"model.{name}": size for name, size in SIZES.items()}
    changes = {**sizes, "model.layers": 2, "data.sequence_length": 128, "mesh": ""}
    recipe = experiment("finetune", f"model=llama3_8b,method={method}", **changes)
    plan = plan_decode(recipe, parse_target("cpu"))
    dense = plan_decode(
        llama(**{"model.layers": 2, "precision.compute": "bfloat16"}), parse_target("cpu")
    )
    rest = plan.params_bytes / dense.params_bytes
    assert (
        rest < 0.75 if method == "qlora" else 1 < rest < 1.5
    )  # four bits a weight; the others add to it
    assert "prompt" not in plan.params  # it is read once for all texts, and a prefix then
    assert plan.jaxpr.in_avals


def test_an_encoder_decoder_reads_its_encoders_memory_and_an_encoder_decodes_nothing():
    smoke = {"data.batch_size": 8, "mesh": "data:8", "precision.compute": "float32"}
    plan = plan_decode(
        experiment("pretrain", "model=t5_base,smoke", **smoke), parse_target("cpu:8")
    )
    assert plan.state.memory is not None and plan.jaxpr.in_avals
    with pytest.raises(ValueError, match="encoder"):
        plan_decode(experiment("pretrain", "model=bert_base,smoke", **smoke), parse_target("cpu:8"))


@pytest.mark.parametrize("target", ["v5e:1x1", "h100:1"])
def test_it_compiles_for_what_is_not_here(target):
    need_compiler(target)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__, target], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    size = found["params"] + found["cache"]
    # A TPU copies the head's table, a tenth, into the order that its product wants, and a layer's
    # keys and values.
    assert size <= found["total"] < 1.3 * size


if __name__ == "__main__":
    sizes = {
        "layers": 4,
        "d_model": 1024,
        "d_ff": 4096,
        "kv_heads": 8,
        "head_size": 128,
        "vocab_size": 16384,
    }
    changes = {f"model.{name}": size for name, size in sizes.items()} | {
        "precision.compute": "bfloat16"
    }
    recipe, chosen = llama(**changes), parse_target(sys.argv[1])
    plan = plan_decode(recipe, chosen)
    size = {"params": plan.params_bytes, "cache": plan.cache_bytes}
    print(json.dumps(size | {"total": total_bytes(plan.compile(chosen))}))
