"""Meshes and logical axes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from research.data.tokenizers import load_tokenizer
from research.infer.sampling import SamplingConfig
from research.infer.steps import Start, advance, begin
from research.objectives.choose import make_objective
from research.parallel import mesh as mesh_file
from research.parallel.axes import MESH_AXES, RULES, merge_rules, partition, unsplit
from research.parallel.mesh import make_mesh, mesh_shape, parse_mesh, place_batch
from research.run.program import make_program
from tests.configs import experiment
from tests.families import random_batch

GREEDY = SamplingConfig(temperature=0.0)
NO_STOP = np.full(1, -1, np.int32)


def test_every_mesh_names_every_axis():
    for text in ("", "fsdp:8", "data:2,tensor:4", "fsdp:-1,tensor:2"):
        assert make_mesh(text).axis_names == MESH_AXES
    assert make_mesh("").size == 1 and make_mesh("fsdp:-1,tensor:2").shape["fsdp"] == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fsdp", "AXIS:SIZE"),
        ("fsdp:two", "AXIS:SIZE"),
        ("model:2", "'model'"),
        ("fsdp:2,fsdp:4", "twice"),
        ("fsdp:0", "positive"),
        ("fsdp:-1,tensor:-1", "only one"),
    ],
)
def test_meshes_that_mean_nothing_are_refused(text, words):
    with pytest.raises(ValueError, match=words):
        parse_mesh(text)


def test_a_mesh_must_fit_its_devices():
    assert mesh_shape("fsdp:-1,tensor:2", 8) == (1, 1, 4, 1, 1, 2)
    for text in ("fsdp:3", "fsdp:-1,tensor:3", "fsdp:16"):
        with pytest.raises(ValueError, match="config.mesh"):
            mesh_shape(text, 8)


def test_partition_maps_logical_axes_and_leaves_whole_what_does_not_divide():
    mesh = make_mesh("fsdp:4,tensor:2")
    assert partition(("embed", "heads", "head"), (64, 8, 8), mesh, RULES) == P(
        "fsdp", "tensor", None
    )
    assert partition(("batch", "length"), (8, 16), mesh, RULES) == P("fsdp", None)
    assert partition(
        ("batch", "length"), (8, 16), make_mesh("data:2,fsdp:2,context:2"), RULES
    ) == P(("data", "fsdp"), "context")
    assert partition(("vocab", "embed"), (50257, 768), mesh, RULES) == P(None, "fsdp")
    assert unsplit(("vocab", "embed"), (50257, 768), mesh, RULES) == ["vocab 50257 over tensor:2"]


def test_unknown_and_colliding_axes_raise():
    mesh = make_mesh("fsdp:4,tensor:2")
    with pytest.raises(ValueError, match="'hedas'"):
        partition(("hedas",), (8,), mesh, RULES)
    with pytest.raises(ValueError, match="'heads' and 'mlp'.*'tensor'"):
        partition(("heads", "mlp"), (8, 8), mesh, RULES)
    with pytest.raises(ValueError, match="2 dimensions"):
        partition(("heads", "mlp"), (8,), mesh, RULES)
    with pytest.raises(ValueError, match="'model'"):
        merge_rules({"embed": ("model",)})
    with pytest.raises(ValueError, match="'embedding'"):
        merge_rules({"embedding": ("fsdp",)})


def test_overrides_move_an_axis():
    mesh = make_mesh("data:4,tensor:2")
    assert partition(("embed",), (64,), mesh, merge_rules({"embed": ("data",)})) == P("data")
    assert jax.device_count() == 8


# Every dimension that the tensor axis splits by default is left whole, so that rows may have it.
ROWS_OVER_TENSOR = {
    "batch": ("data", "tensor"),
    **dict.fromkeys(("heads", "kv_heads", "mlp", "vocab"), ()),
}


def test_a_batch_its_cache_and_decoding_are_placed_by_the_rules_of_the_config():
    changes = {f"axes.{logical}": names for logical, names in ROWS_OVER_TENSOR.items()}
    results = {}
    for mesh, axes in (("", {}), ("data:2,tensor:4", changes)):
        e = experiment(
            "pretrain",
            "model=llama2_7b,smoke",
            mesh=mesh,
            **{"data.sequence_length": 16, "data.batch_size": 8, **axes},
        )
        p = make_program(e, make_objective(e.objective, load_tokenizer("bytes")))
        with jax.set_mesh(p.mesh):
            batch = place_batch(random_batch(8, 16), p.mesh, p.rules, 8)
            state = p.init()
            params = jax.tree.map(jnp.copy, state.trainable)  # the step donates its state
            _, metrics = p.train_step(state, batch)
            state, ids_B1, _ = begin_texts(p.model, params)
            if mesh:
                rows = ("data", "tensor")
                assert {leaf.sharding.spec[0] for leaf in batch.values()} == {rows}
                assert state.cache.positions_BS.sharding.spec[0] == rows
                assert state.cache.key_LBKSH.sharding.spec[1] == rows
                assert state.token_B.sharding.spec[0] == rows
            state, ids_BT, _ = advance(
                params,
                state,
                np.ones(8, bool),
                np.int32(4),
                NO_STOP,
                model=p.model,
                sampling=GREEDY,
            )
            results[mesh] = float(metrics["loss"]), np.asarray(ids_B1), np.asarray(ids_BT)[:, :4]
    alone, spread = results.values()
    np.testing.assert_allclose(spread[0], alone[0], rtol=1e-6)  # float32 sums over devices
    np.testing.assert_array_equal(spread[1], alone[1])
    np.testing.assert_array_equal(spread[2], alone[2])


@pytest.mark.parametrize(
    ("mesh", "axes", "words"),
    [
        ("data:2", {"layers": ("data",)}, "'data', which cannot split 'layers'"),
        ("fsdp:2", {"vector": ("fsdp",)}, "'fsdp', which cannot split 'vector'"),
        ("context:2", {"batch": ("context",)}, "axes.batch and axes.length"),
        ("tensor:2", {"length": ("tensor",)}, "axes.length and axes.vocab"),
        ("data:2,tensor:4", {"batch": ("data", "tensor")}, "axes.batch and axes.vocab"),
        ("expert:2", {"embed": ("expert",)}, "axes.batch and axes.embed"),
        ("fsdp:2", {"mlp": ("fsdp",)}, "'mlp' and 'embed'|'embed' and 'mlp'"),
    ],
)
def test_rules_that_no_step_can_follow_are_refused_before_it(mesh, axes, words):
    changes = {f"axes.{logical}": names for logical, names in axes.items()}
    e = experiment("pretrain", "model=llama2_7b,smoke", mesh=mesh, **changes)
    devices = jax.devices()[: math.prod(parse_mesh(mesh).values())]
    with pytest.raises(ValueError, match=words) as caught:
        make_program(e, make_objective(e.objective, load_tokenizer("bytes")), devices)
    assert "config.axes." in str(caught.value) and "\n" not in str(caught.value)
    # An axis of size 1 splits nothing, whatever the rules say.
    alone = dataclasses.replace(e, mesh="")
    make_program(alone, make_objective(e.objective, load_tokenizer("bytes")))


def begin_texts(model, params):
    """Eight prompts of two bytes, read."""
    prompts = [[row + 10, row + 50] for row in range(8)]
    start = Start(prompts, None, [8] * 8, [(row, 0) for row in range(8)], seed=0)
    return begin(model, params, params, start, GREEDY, NO_STOP)


class OfProcess:
    """A sharding of rows whose devices in this process hold `held`."""

    def __init__(self, *held):
        self.held = dict(enumerate((slice(*one),) for one in held))

    def addressable_devices_indices_map(self, shape):
        return self.held


@pytest.mark.parametrize(
    ("held", "part"),
    [
        ([(0, 8)], (0, 1)),
        ([(None, None)] * 2, (0, 1)),  # a tensor axis over processes: all read all rows
        ([(4, 6), (6, 8)], (1, 2)),
        ([(2, 4), (2, 4)], (1, 4)),  # two devices of a context axis
        ([(0, 2), (4, 6)], None),
        ([(2, 4), (4, 6)], None),
    ],
)
def test_a_process_reads_the_rows_that_its_devices_hold(monkeypatch, held, part):
    monkeypatch.setattr(mesh_file, "batch_sharding", lambda *_: OfProcess(*held))
    if part is None:
        with pytest.raises(ValueError, match="rows of a batch that do not lie together"):
            mesh_file.row_part(None, RULES, 8)
    else:
        assert mesh_file.row_part(None, RULES, 8) == part
