"""Gathers and scattered sums in stages are those of one stage."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from research.parallel import collectives
from research.parallel.collectives import all_gather, stages, sum_to_place


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32, 48, 64, 128, 256, 512, 2048, 7])
@pytest.mark.parametrize(
    "kind", ["TPU v4", "TPU v5", "TPU v5 lite", "TPU v6 lite", "NVIDIA H100 80GB HBM3", "cpu"]
)
def test_stages_multiply_to_the_group(kind, size):
    cut = stages(size, kind)
    assert np.prod(cut) == size and len(cut) <= 2
    assert len(cut) == 1 or kind.startswith("TPU")


def test_slices_that_there_are_are_cut_into_planes_and_lines():
    assert (
        stages(64, "TPU v5") == (16, 4)
        and stages(512, "TPU v5") == (64, 8)
        and stages(2048, "TPU v5") == (256, 8)
    )
    assert (
        stages(256, "TPU v5 lite") == (16, 16)
        and stages(64, "TPU v6 lite") == (8, 8)
        and stages(16, "TPU v5 lite") == (4, 4)
    )


@pytest.mark.parametrize("kind", ["TPU v4", "TPU v5", "TPU7x"])
def test_a_whole_slice_of_three_axes_is_cut_from_8_chips_on(kind):
    assert stages(8, kind, 8) == (4, 2) and stages(16, kind, 16) == (8, 2)
    assert stages(4, kind, 4) == (4,) and stages(16, kind, 64) == (16,)
    assert stages(8, "TPU v5 lite", 8) == (8,)


@pytest.mark.parametrize("cut", [(8,), (4, 2), (2, 4), (2, 2, 2)])
@pytest.mark.parametrize("mesh", ["fsdp:8"], indirect=True)
def test_any_stages_gather_and_scatter_alike(mesh, cut, monkeypatch):
    monkeypatch.setattr(collectives, "_stages", lambda size: cut)
    x = jax.reshard(jnp.arange(128.0).reshape(16, 8), P("fsdp", None))

    @jax.jit
    @partial(jax.shard_map, in_specs=P("fsdp", None), out_specs=P("fsdp", None), check_vma=False)
    def both(x):
        whole = all_gather(x, "fsdp", 0)
        return sum_to_place(whole * (1 + jax.lax.axis_index("fsdp")), [("fsdp",), ()], {"fsdp"})

    np.testing.assert_array_equal(both(x), x * sum(range(1, 9)))


@pytest.mark.parametrize("mesh", ["data:2,fsdp:4"], indirect=True)
def test_what_is_stored_and_equal_is_cut_and_the_rest_is_summed(mesh):
    @jax.jit
    @partial(jax.shard_map, in_specs=P(), out_specs=P("fsdp", None), check_vma=False)
    def place(x):
        return sum_to_place(x, [("fsdp",), ()], {"data"})

    x = jnp.arange(16.0).reshape(8, 2)
    np.testing.assert_array_equal(place(x), 2 * x)
