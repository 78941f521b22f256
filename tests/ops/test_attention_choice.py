"""Which implementation of attention serves a case: the choice by platform, and what is refused."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from research.models.config import ModelConfig
from research.models.model import Model
from research.models.spec import abstract
from research.ops.attention import Visibility
from research.ops.kernels import flash, splash
from research.ops.kernels.attention import choose
from research.parallel.axes import MESH_AXES, RULES


def at(platform, context=1):
    """A mesh of devices that are not here."""
    device = AbstractDevice(device_kind=platform, num_cores=1, platform=platform)
    types = (AxisType.Explicit,) * len(MESH_AXES)
    return AbstractMesh((1, 1, 1, context, 1), MESH_AXES, axis_types=types, abstract_device=device)


def chosen(
    mesh,
    implementation="auto",
    T=256,
    S=256,
    H=64,
    dtype="bfloat16",
    causal=True,
    window=0,
    packed=True,
    bias=False,
    softcap=0.0,
):
    """What serves a case of these sizes on this mesh."""
    answer = []

    def ask(q, k, tokens, memory):
        visibility = Visibility(tokens, memory, tokens, memory, causal, window, packed)
        answer.append(choose(implementation, q, k, visibility, q if bias else None, softcap))

    def shaped(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    with jax.sharding.use_abstract_mesh(mesh):
        jax.eval_shape(
            ask,
            shaped((1, T, 2, H), dtype, P(None, "context")),
            shaped((1, S, 1, H), dtype, P()),
            shaped((1, T), "int32", P(None, "context")),
            shaped((1, S), "int32", P()),
        )
    return answer[0]


def test_auto_takes_the_kernel_of_the_platform():
    assert chosen(at("tpu")) is splash.attend
    assert chosen(at("gpu")) is flash.attend
    assert chosen(at("cpu")) is None


def test_auto_takes_the_kernel_for_what_it_alone_can_serve():
    assert chosen(at("tpu"), window=64) is splash.attend
    assert chosen(at("tpu"), softcap=50.0) is splash.attend
    assert chosen(at("tpu", context=2)) is splash.attend
    assert chosen(at("tpu"), S=512, causal=False, packed=False) is splash.attend


REFUSED = [
    ("splash", at("tpu"), dict(bias=True), "bias"),
    (
        "splash",
        at("tpu"),
        dict(T=200, S=200),
        "200 queries a device and 200 keys must be multiples of 128",
    ),
    ("splash", at("tpu", context=4), dict(), "64 queries a device"),
    ("splash", at("tpu"), dict(T=128, packed=False), "not one packed row"),
    ("splash", at("tpu"), dict(H=36), "head_size=36"),
    ("splash", at("tpu"), dict(dtype="float16"), "float16 queries"),
    ("flash", at("gpu"), dict(bias=True), "bias"),
    ("flash", at("gpu"), dict(causal=False, packed=False), "not one packed row"),
    ("flash", at("gpu"), dict(window=64), "no window"),
    ("flash", at("gpu"), dict(softcap=50.0), "no soft cap and model.attention_softcap=50.0"),
    ("flash", at("gpu", context=2), dict(), "without a context axis"),
    ("flash", at("gpu"), dict(H=256, dtype="float32"), "over 512 bytes"),
]


@pytest.mark.parametrize(("name", "mesh", "case", "reason"), REFUSED)
def test_what_a_kernel_cannot_serve_goes_to_the_reference_or_raises(name, mesh, case, reason):
    assert chosen(mesh, **case) is None
    with pytest.raises(
        NotImplementedError, match=f"attention '{name}' cannot serve.*{reason}.*execution.attention"
    ):
        chosen(mesh, name, **case)


def test_a_kernel_of_another_platform_raises():
    with pytest.raises(NotImplementedError, match="the mesh is of cpu devices and it wants tpu"):
        chosen(at("cpu"), "splash")


def traced(platform, config, cached):
    """The program of a model's last states on a platform, as text."""
    mesh, model = at(platform), Model(config)

    def run(params, tokens):
        batch = {"inputs": tokens, "positions": tokens, "segments": tokens}
        if cached:
            return model.decode(params, batch, model.make_cache(2, 128, 128))[0]
        return model.hidden(params, batch)[0]

    with jax.sharding.use_abstract_mesh(mesh):
        tokens = jax.ShapeDtypeStruct((2, 128), jnp.int32, sharding=NamedSharding(mesh, P()))
        return str(jax.make_jaxpr(run)(abstract(model.specs(), jnp.float32, mesh, RULES), tokens))


@pytest.mark.parametrize(("platform", "name"), [("tpu", "splash_mha_fwd"), ("gpu", "mha_forward")])
@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_models_train_through_the_kernel_and_decode_through_the_reference(platform, name, kind):
    config = ModelConfig(
        kind=kind,
        vocab_size=64,
        layers=1,
        d_model=16,
        heads=2,
        kv_heads=1,
        head_size=8,
        d_ff=16,
        max_length=128,
    )
    assert name in traced(platform, config, cached=False)
    if kind == "decoder":
        assert name not in traced(platform, config, cached=True)


def test_pallas_is_imported_only_for_a_kernel():
    """It takes a second, which a run on the CPU need not wait."""
    code = (
        "import sys, jax, jax.numpy as jnp, research.models.model\n"
        "from research.ops.attention import Visibility, attend\n"
        "ids, x = jnp.ones((1, 128), int), jnp.ones((1, 128, 1, 8))\n"
        "seen = Visibility(ids, ids, ids, ids, True, 0, True)\n"
        "jax.eval_shape(lambda: attend(x, x, x, seen, scale=1.0))\n"
        "assert not [name for name in sys.modules if name.startswith('jax.experimental.pallas')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
