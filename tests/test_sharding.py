"""A mesh changes where numbers are, not what they are: 20 steps of every family against one
device."""

import jax
import numpy as np
import pytest

from research import tree
from research.data.tokenizers import load_tokenizer
from research.objectives.choose import make_objective
from research.parallel.mesh import place_batch
from research.run.program import Program, make_program
from tests.configs import experiment
from tests.families import Roles, random_batch

MESHES = ("fsdp:4,tensor:2", "data:2,fsdp:2,context:2")
# What the axis `expert` splits of a layer without experts is the batch, as `data` does.
OF_EXPERTS = "expert:2,fsdp:2,tensor:2"
FAMILIES = (
    "gpt2", "llama2_7b", "llama3_8b", "smollm2_135m", "mistral_7b", "mixtral_8x7b", "qwen2.5_7b",
    "qwen3_8b", "gpt_oss_20b", "deepseek_v3", "bert_base", "transformer_base", "t5_small",
)  # fmt: skip
STEPS = 20


def program(family: str, mesh: str) -> Program:
    dropout = {"model.dropout": 0.1} if family == "gpt2" else {"model.dropout": 0.0}
    e = experiment(
        "pretrain", f"model={family},smoke", mesh=mesh, **{"data.sequence_length": 16, **dropout}
    )
    return make_program(e, make_objective(e.objective, Roles()))


def losses(p: Program) -> list[float]:
    """The loss of each step on the same few batches, starting from the seed."""
    with jax.set_mesh(p.mesh):
        state, seen = p.init(), []
        for step in range(STEPS):
            batch = place_batch(
                random_batch(p.batch_size, 16, seed=step % 4), p.mesh, p.rules, p.batch_size
            )
            state, metrics = p.train_step(state, batch)
            seen.append(metrics["loss"])
        p.check_bytes(state)
        return [float(loss) for loss in seen]


# A decoder with rotary positions and one with dropout always, the others with what is slow.
FEW = ("gpt2", "llama3_8b")
EXPERTS = ("mixtral_8x7b", "gpt_oss_20b", "deepseek_v3")


@pytest.mark.parametrize(
    "family", [f if f in FEW else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
)
def test_twenty_steps_on_each_mesh_have_the_losses_of_one_device(family):
    alone = losses(program(family, ""))
    assert alone[-1] < alone[0] - 0.05  # it learns, so the comparison is of more than a fixed point
    # Float order alone differs. Experts: a tie in float order may route a token elsewhere.
    tolerance = 1e-4 if family in EXPERTS else 1e-5
    for mesh in (*MESHES, *[OF_EXPERTS] * (family in (*EXPERTS, "llama3_8b"))):
        np.testing.assert_allclose(
            losses(program(family, mesh)), alone, rtol=tolerance, err_msg=mesh
        )


def test_a_device_holds_its_share_of_the_parameters():
    p = program("llama2_7b", "fsdp:4,tensor:2")
    with jax.set_mesh(p.mesh):
        state = p.init()  # which asserts the predicted bytes
    for path, leaf in tree.paths(state.trainable).items():
        split = 1 if "norm" in path else 8
        assert leaf.addressable_shards[0].data.nbytes * split == leaf.nbytes, path


def test_accumulation_over_uneven_micro_batches_equals_one_batch():
    whole = program("llama2_7b", "")
    parts = make_program(
        experiment(
            "pretrain",
            "model=llama2_7b,smoke",
            **{"data.sequence_length": 16, "train.accumulate": 4},
        ),
        whole.objective,
    )
    batch = random_batch(8, 16)
    batch["weights"][:3] = 0  # the micro-batches count different numbers of tokens
    results = []
    for p in (whole, parts):
        with jax.set_mesh(p.mesh):
            state, metrics = p.train_step(p.init(), place_batch(batch, p.mesh, p.rules, 8))
            results.append((metrics["loss"], metrics["grad_norm"], state.trainable))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5)  # sums in another order


def test_bfloat16_masters_stay_float32():
    e = experiment(
        "pretrain",
        "model=llama2_7b,smoke",
        **{"precision.compute": "bfloat16", "data.sequence_length": 16},
    )
    p = make_program(e, make_objective(e.objective, load_tokenizer("bytes")))
    with jax.set_mesh(p.mesh):
        state, metrics = p.train_step(
            p.init(), place_batch(random_batch(8, 16), p.mesh, p.rules, 8)
        )
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.trainable)} == {"float32"}
    assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mesh": "fsdp:3"}, "config.mesh"),
        ({"mesh": "fsdp:4,tensor:4"}, "config.mesh"),
        ({"mesh": "fsdb:8"}, "fsdb"),
        ({"mesh": "fsdp:-1,data:-1"}, "-1"),
        ({"mesh": "fsdp:8", "data.batch_size": 12}, "config.data.batch_size"),
        ({"mesh": "context:8", "data.sequence_length": 12}, "config.data.sequence_length"),
        ({"train.accumulate": 3}, "train.accumulate"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(changes, words):
    with pytest.raises(ValueError) as caught:
        e = experiment("pretrain", "model=llama2_7b,smoke", **changes)
        make_program(e, make_objective(e.objective, load_tokenizer("bytes")))
    assert words in str(caught.value) and "\n" not in str(caught.value)
