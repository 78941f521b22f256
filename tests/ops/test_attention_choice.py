"""Which implementation of attention serves a case: the choice by platform, and what is refused."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from research.models.config import ModelConfig
from research.models.model import Model
from research.models.spec import abstract
from research.ops.attention import Visibility
from research.ops.kernels import cudnn, flash, mosaic, splash
from research.ops.kernels.attention import choose
from research.ops.kernels.notes import CannotServe, tell_once
from research.parallel.axes import MESH_AXES, RULES

HOPPER, AMPERE, BLACKWELL = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA B200"


def at(platform, context=1, kind=""):
    """A mesh of devices that are not here."""
    device = AbstractDevice(device_kind=kind or platform, num_cores=1, platform=platform)
    types = (AxisType.Explicit,) * len(MESH_AXES)
    sizes = tuple(context if name == "context" else 1 for name in MESH_AXES)
    return AbstractMesh(sizes, MESH_AXES, axis_types=types, abstract_device=device)


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
    single=False,
    documents=0,
    bias=False,
    softcap=0.0,
    sinks=False,
):
    """What serves a case of these sizes on this mesh."""
    answer = []

    def ask(q, k, tokens, memory):
        tokens_of = tokens, memory, tokens, memory
        promises = dict(packed=packed, single=single, documents=documents)
        visibility = Visibility(*tokens_of, causal, window, **promises)
        scoring = q if bias else None, softcap, sinks
        answer.append(choose(implementation, q, k, visibility, *scoring))

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
    assert chosen(at("tpu"), sinks=True, window=64) is splash.attend
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
    ("flash", at("gpu"), dict(sinks=True), "no sinks and model.attention_sinks=True"),
    ("flash", at("gpu", context=2), dict(), "without a context axis"),
    ("flash", at("gpu"), dict(H=256, dtype="float32"), "over 512 bytes"),
]


@pytest.mark.parametrize(("name", "mesh", "case", "reason"), REFUSED)
def test_what_a_kernel_cannot_serve_goes_to_the_reference_or_raises(name, mesh, case, reason):
    assert chosen(mesh, **case) is None
    with pytest.raises(
        CannotServe, match=f"attention '{name}' cannot serve.*{reason}.*execution.attention"
    ):
        chosen(mesh, name, **case)


@pytest.fixture
def tokamax(monkeypatch):
    """As though the extra [kernels] were installed, and the card were here, with its cuDNN."""
    monkeypatch.setattr(mosaic, "_missing", lambda: None)
    monkeypatch.setattr(cudnn, "_absent", lambda: None)
    monkeypatch.setattr(cudnn, "PACKED", (0, 0))


def test_a_hopper_card_takes_what_was_measured_to_be_fastest(tokamax, capsys):
    card = at("gpu", kind=HOPPER)
    for case in (dict(), dict(window=64), dict(T=200, S=200), dict(H=256), dict(window=1000)):
        assert chosen(card, **case) is mosaic.attend, case
        assert chosen(card, **case, single=True) is cudnn.attend, case
        # Few documents a row are those with which cuDNN was measured to win.
        assert chosen(card, **case, documents=8) is cudnn.attend, case
        assert chosen(card, **case, documents=9) is mosaic.attend, case
    for case in (dict(causal=False), dict(dtype="float32")):
        assert chosen(card, **case) is flash.attend, case
    assert chosen(card, causal=False, documents=8) is flash.attend
    assert chosen(card, packed=False) is None
    assert chosen(card, softcap=50.0) is None
    assert chosen(card, sinks=True) is None
    tell_once.cache_clear()
    chosen(card)
    assert f"note: attention on {HOPPER}: mosaic\n" in capsys.readouterr().err


def test_without_the_extra_cudnn_serves_any_known_number_of_documents(tokamax, monkeypatch):
    monkeypatch.setattr(mosaic, "_missing", lambda: "tokamax is not installed")
    assert chosen(at("gpu", kind=HOPPER), documents=100) is cudnn.attend


def test_for_a_card_that_is_not_here_mosaic_stands_in_for_cudnn(tokamax, monkeypatch, capsys):
    """cuDNN compiles only beside its card; `fit` counts the next one and says so."""
    monkeypatch.undo()
    monkeypatch.setattr(mosaic, "_missing", lambda: None)
    tell_once.cache_clear()
    assert chosen(at("gpu", kind=HOPPER), single=True) is mosaic.attend
    assert (
        f"mosaic (not cudnn: it compiles only on a machine with the card, and there is no "
        f"{HOPPER} here)" in capsys.readouterr().err
    )


@pytest.mark.parametrize("kind", [AMPERE, BLACKWELL, "NVIDIA GeForce RTX 4090"])
def test_other_cards_take_the_kernel_that_they_had(tokamax, kind):
    assert chosen(at("gpu", kind=kind)) is flash.attend
    assert chosen(at("gpu", kind=kind), single=True) is flash.attend


def test_without_the_extra_the_choice_says_what_it_costs(monkeypatch, capsys):
    monkeypatch.setattr(mosaic, "_missing", lambda: "tokamax is not installed")
    tell_once.cache_clear()
    assert chosen(at("gpu", kind=HOPPER)) is flash.attend
    said = capsys.readouterr().err
    assert "flash" in said and "tokamax is not installed" in said and "three times" in said
    assert chosen(at("gpu", kind=HOPPER), window=64) is None


NAMED = [
    ("mosaic", AMPERE, dict(), "neither of Hopper nor of datacenter Blackwell"),
    ("mosaic", HOPPER, dict(dtype="float32"), "must be bfloat16 or float16"),
    ("mosaic", HOPPER, dict(H=320), "a head of 320"),
    ("mosaic", HOPPER, dict(causal=False), "causal attention within packed rows"),
    ("cudnn", HOPPER, dict(), "any number of documents; set config.execution.documents"),
    ("cudnn", HOPPER, dict(documents=8, causal=False), "causal attention within packed rows alone"),
    ("cudnn", AMPERE, dict(documents=8), "begin with Hopper"),
    ("cudnn", AMPERE, dict(single=True, H=256), "a multiple of 8 up to 128"),
    ("cudnn", HOPPER, dict(single=True, dtype="float32"), "must be bfloat16 or float16"),
]


@pytest.mark.parametrize(("name", "kind", "case", "reason"), NAMED)
def test_a_named_kernel_that_cannot_serve_raises(tokamax, name, kind, case, reason):
    with pytest.raises(CannotServe, match=f"attention '{name}' cannot serve.*{reason}"):
        chosen(at("gpu", kind=kind), name, **case)


def test_cudnns_packed_call_wants_a_jax_in_which_it_is_right(tokamax, monkeypatch):
    monkeypatch.setattr(cudnn, "PACKED", (99, 0, 0))
    with pytest.raises(CannotServe, match="packed rows want JAX 99.0.0 or newer and this"):
        chosen(at("gpu", kind=HOPPER), "cudnn", documents=8)
    assert chosen(at("gpu", kind=HOPPER), documents=8) is mosaic.attend


def test_cudnns_packed_call_is_made_in_one_place():
    """With two rows or more it is silently wrong up to JAX 0.11.2: outputs off by half, gradients
    NaN. `cudnn.attend` joins rows first (tests/ops/test_attention_on_gpu.py); nothing else may
    import the private module of JAX that alone has it."""
    package = Path(flash.__file__).parent.parent.parent
    users = [path for path in package.rglob("*.py") if "_src.cudnn" in path.read_text()]
    assert users == [Path(cudnn.__file__)]
    assert Path(cudnn.__file__).read_text().count("_private()") == 2  # its definition and one call


def test_a_kernel_of_another_platform_raises():
    with pytest.raises(CannotServe, match="the mesh is of cpu devices and it wants tpu"):
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
