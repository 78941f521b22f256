"""Meshes and logical axes."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from research.parallel.axes import MESH_AXES, merge_rules, partition, unsplit
from research.parallel.mesh import make_mesh, mesh_shape, parse_mesh


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
    assert mesh_shape("fsdp:-1,tensor:2", 8) == (1, 4, 1, 1, 2)
    for text in ("fsdp:3", "fsdp:-1,tensor:3", "fsdp:16"):
        with pytest.raises(ValueError, match="config.mesh"):
            mesh_shape(text, 8)


def test_partition_maps_logical_axes_and_leaves_whole_what_does_not_divide():
    mesh = make_mesh("fsdp:4,tensor:2")
    assert partition(("embed", "heads", "head"), (64, 8, 8), mesh) == P("fsdp", "tensor", None)
    assert partition(("batch", "length"), (8, 16), mesh) == P("fsdp", None)
    assert partition(("batch", "length"), (8, 16), make_mesh("data:2,fsdp:2,context:2")) == P(
        ("data", "fsdp"), "context"
    )
    assert partition(("vocab", "embed"), (50257, 768), mesh) == P(None, "fsdp")
    assert unsplit(("vocab", "embed"), (50257, 768), mesh) == ["vocab 50257 over tensor:2"]


def test_unknown_and_colliding_axes_raise():
    mesh = make_mesh("fsdp:4,tensor:2")
    with pytest.raises(ValueError, match="'hedas'"):
        partition(("hedas",), (8,), mesh)
    with pytest.raises(ValueError, match="'heads' and 'mlp'.*'tensor'"):
        partition(("heads", "mlp"), (8, 8), mesh)
    with pytest.raises(ValueError, match="2 dimensions"):
        partition(("heads", "mlp"), (8,), mesh)
    with pytest.raises(ValueError, match="'model'"):
        merge_rules({"embed": ("model",)})
    with pytest.raises(ValueError, match="'embedding'"):
        merge_rules({"embedding": ("fsdp",)})


def test_overrides_move_an_axis():
    mesh = make_mesh("data:4,tensor:2")
    assert partition(("embed",), (64,), mesh, merge_rules({"embed": ("data",)})) == P("data")
    assert jax.device_count() == 8
