"""Which kernels multiply experts: the choice by device and case, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh
from jax.sharding import PartitionSpec as P

from research.ops.grouped import grouped
from research.ops.kernels import grouped_matmul_gpu, grouped_matmul_tpu
from research.ops.kernels.grouped_matmul import Case, choose
from research.ops.kernels.notes import CannotServe, tell_once
from research.parallel.axes import MESH_AXES

HOPPER, AMPERE, BLACKWELL = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA B200"
MIXTRAL = dict(M=8192, E=8, I=4096, O=14336, dtype=jnp.dtype("bfloat16"))


def at(platform, kind=""):
    """A mesh of one device that is not here."""
    device = AbstractDevice(device_kind=kind or platform, num_cores=1, platform=platform)
    types = (AxisType.Explicit,) * len(MESH_AXES)
    return AbstractMesh((1,) * len(MESH_AXES), MESH_AXES, axis_types=types, abstract_device=device)


def chosen(mesh, implementation="auto", **case):
    with use_abstract_mesh(mesh):
        return choose(implementation, Case(**{**MIXTRAL, **case}))


def test_auto_takes_what_was_measured_and_says_so(capsys):
    tell_once.cache_clear()
    assert chosen(at("gpu", HOPPER)) is grouped_matmul_gpu
    assert f"note: the experts' products on {HOPPER}: mosaic\n" == capsys.readouterr().err
    assert chosen(at("tpu")) is grouped_matmul_tpu
    assert chosen(at("tpu"), gradient=True) is grouped_matmul_tpu
    assert chosen(at("cpu")) is None


# What "auto" leaves to XLA on a card, and whether the kernel then serves by name.
LEFT = [
    (HOPPER, dict(gradient=True), "not timed; config.execution.experts='mosaic' takes it", True),
    (HOPPER, dict(M=16), "16 rows are under 1024, where it was not timed", True),
    (HOPPER, dict(O=96), "4096 x 96 must be multiples of 64 x 128", False),
    (HOPPER, dict(dtype=jnp.dtype("float32")), "set config.precision.compute", False),
    (AMPERE, {}, "not of Hopper", False),
    (BLACKWELL, {}, "not of Hopper", False),
]


@pytest.mark.parametrize(("card", "case", "reason", "by_name"), LEFT)
def test_what_was_not_timed_is_xlas_and_what_cannot_be_raises_by_name(card, case, reason, by_name):
    assert chosen(at("gpu", card), **case) is None
    if card == HOPPER:
        assert reason in grouped_matmul_gpu_refusal(card, case)
    if by_name:
        assert chosen(at("gpu", card), "mosaic", **case) is grouped_matmul_gpu
        return
    with pytest.raises(CannotServe, match=f"{reason}.*set config.execution.experts"):
        chosen(at("gpu", card), "mosaic", **case)


def grouped_matmul_gpu_refusal(card, case):
    with use_abstract_mesh(at("gpu", card)):
        return grouped_matmul_gpu.refusal(Case(**{**MIXTRAL, **case}), named=False)


@pytest.mark.parametrize(("implementation", "kernels"), [("auto", 2), ("mosaic", 3), ("xla", 0)])
def test_a_product_and_its_gradients_on_a_card(implementation, kernels):
    shapes = (1024, 128), (2, 128, 256), (1024, 256)
    x, w, dy = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes)

    def gradients(x, w, dy, sizes):
        multiply = partial(grouped, sizes_E=sizes, implementation=implementation)
        return jax.vjp(multiply, x, w)[1](dy), multiply(x, w)

    with use_abstract_mesh(at("gpu", HOPPER)):
        island = jax.shard_map(gradients, in_specs=P(), out_specs=P(), check_vma=False)
        jaxpr = jax.make_jaxpr(island)(x, w, dy, jax.ShapeDtypeStruct((2,), jnp.int32))
    # The product itself stands there twice.
    assert str(jaxpr).count("mpmd_map[") == kernels + (implementation != "xla")


def test_a_name_is_of_one_platform_and_xla_of_all():
    with pytest.raises(CannotServe, match="the mesh is of cpu devices and it wants gpu"):
        chosen(at("cpu"), "mosaic")
    with pytest.raises(CannotServe, match="the mesh is of gpu devices and it wants tpu"):
        chosen(at("gpu", HOPPER), "megablox")
    assert chosen(at("gpu", HOPPER), "xla") is chosen(at("tpu"), "xla") is None
