"""A stack spread over stages computes what it computes on one device, whatever else splits the
mesh."""

import functools

import jax
import numpy as np
import pytest

from research.models import pipeline
from research.models.presets import PRESETS
from research.objectives.choose import make_objective
from research.parallel.mesh import place_batch
from research.run.program import make_program
from tests.configs import experiment
from tests.families import Roles, random_batch

STEPS = 4


def program(family="llama3_8b", mesh="", **changes):
    changes = {"model.dropout": 0.0, "model.layers": 4, "data.sequence_length": 16, **changes}
    e = experiment("pretrain", f"model={family},smoke", mesh=mesh, **changes)
    return make_program(e, make_objective(e.objective, Roles()))


def losses(p):
    """The loss of each step, and that of the layers where they have one."""
    with jax.set_mesh(p.mesh):
        state, seen = p.init(), []
        for step in range(STEPS):
            rows = random_batch(p.batch_size, 16, seed=step)
            batch = place_batch(rows, p.mesh, p.rules, p.batch_size)
            state, metrics = p.train_step(state, batch)
            seen.append([float(metrics["loss"]), float(metrics["grad_norm"])])
        p.check_bytes(state)
    return np.array(seen)


@functools.cache
def alone():
    """The losses of one device."""
    return losses(program())


@pytest.mark.parametrize("micro_batches", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_stages_and_micro_batches_have_the_losses_of_one_device(micro_batches):
    staged = program(mesh="data:2,stage:2,tensor:2", **{"execution.micro_batches": micro_batches})
    with jax.set_mesh(staged.mesh):
        shapes = jax.tree.map(lambda x: (x.shape, x.sharding.shard_shape(x.shape)), staged.state)
    whole, part = shapes.trainable["layers"]["mlp"]["up"]
    assert (whole[0], part[0]) == (4, 2)
    np.testing.assert_allclose(losses(staged), alone(), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "mesh", "changes"),
    [
        # The balance of experts is that of a micro-batch, so it is left out.
        ("mixtral_8x7b", "stage:2,expert:2,fsdp:2", {"model.router_loss": 0.0}),
        ("gemma2_2b", "stage:2,fsdp:2,context:2", {}),
        ("bert_base", "stage:4,data:2", {"execution.remat": "full"}),
    ],
)
def test_families_and_meshes_have_the_losses_of_one_device(family, mesh, changes):
    wanted = losses(program(family, **changes))
    np.testing.assert_allclose(losses(program(family, mesh, **changes)), wanted, rtol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "adamw8bit"])
def test_optimizers_update_the_layers_of_a_stage(optimizer):
    changes = {"optimizer.name": optimizer}
    staged = losses(program(mesh="stage:2,fsdp:2,tensor:2", **changes))
    np.testing.assert_allclose(staged, losses(program(**changes)), rtol=1e-5)


@pytest.mark.slow
def test_dropout_draws_for_each_micro_batch():
    def _run(count):
        changes = {"model.dropout": 0.2, "execution.micro_batches": count}
        return losses(program(mesh="stage:2,data:4", **changes))

    two = _run(2)
    assert np.isfinite(two).all() and np.all(two[:, 1] != _run(1)[:, 1])


def test_decoding_gathers_the_layers_and_sees_what_the_pipeline_sees():
    p = program(mesh="stage:2,data:4")
    rows = {**random_batch(8, 16, seed=0)}
    rows["segments"] = np.ones_like(rows["segments"])
    rows["positions"] = np.tile(np.arange(16, dtype=np.int32), (8, 1))
    with jax.set_mesh(p.mesh):
        params = p.init().trainable
        batch = place_batch(rows, p.mesh, p.rules, 8)
        staged = jax.jit(p.model.hidden)(params, batch)[0]
        cache = p.model.make_cache(8, 16, 16)
        cached = jax.jit(p.model.decode)(params, batch, cache)[0]
    np.testing.assert_allclose(staged, cached, atol=2e-5)


@pytest.mark.parametrize(
    ("model", "asked", "stages", "words"),
    [
        ("llama3_8b", 2, 1, "is for meshes with stages"),
        ("llama3_8b", 3, 2, "does not divide the 8 rows"),
        ("t5_small", 0, 2, "two stacks"),
        ("llama3_8b", 0, 3, "32 layers do not divide over 3 stages"),
        ("deepseek_v3", 0, 4, "58 layers do not divide over 4 stages"),
        ("gemma2_2b", 0, 26, "1 each, no whole number of the 2 layers"),
    ],
)
def test_what_is_no_pipeline_is_refused(model, asked, stages, words):
    with pytest.raises(ValueError, match=words):
        pipeline.check(PRESETS[model], asked, 8, stages)


@pytest.mark.parametrize(
    ("asked", "rows", "stages", "count"), [(0, 8, 2, 8), (0, 48, 2, 8), (0, 7, 4, 7), (2, 8, 4, 2)]
)
def test_micro_batches_are_those_asked_for_or_up_to_four_a_stage(asked, rows, stages, count):
    assert pipeline.micro_batches(asked, rows, stages) == count
    assert pipeline.bubble(count, stages) == (stages - 1) / (count + stages - 1)
