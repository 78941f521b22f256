"""The attention seam: the plain formula, whatever implements it and however it is spread over
devices."""

import subprocess
import sys
from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from research.models.config import ModelConfig
from research.models.model import Model
from research.models.spec import abstract
from research.ops.attention import Visibility, attend, reference
from research.ops.kernels import flash, splash
from research.ops.kernels.attention import choose
from research.parallel.axes import MESH_AXES, RULES, partition
from research.parallel.mesh import make_mesh

KERNELS = {
    "splash": partial(splash.attend, interpret=True),
    "flash": partial(flash.attend, interpret=True),
}


def plain(q, k, v, mask_BTS, scale, bias):
    """Attention in float64, one head after the other."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    heads = []
    for n in range(q.shape[2]):
        group = n // (q.shape[2] // k.shape[2])
        scores = scale * np.einsum("bth,bsh->bts", q[:, :, n], k[:, :, group])
        scores += 0 if bias is None else np.asarray(bias, np.float64)[:, n]
        scores = np.where(mask_BTS, scores, -np.inf)
        probs = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
        heads.append(
            np.einsum("bts,bsh->bth", probs / probs.sum(-1, keepdims=True), v[:, :, group])
        )
    return np.stack(heads, axis=2)


def packed_rows(B, T, seed=0):
    """Rows of documents of random lengths with padding after the last: segments and positions, [B,
    T] int32."""
    rng = np.random.default_rng(seed)
    segments, positions = np.zeros((2, B, T), np.int32)
    for b in range(B):
        edges = [0, *sorted(rng.integers(1, T + 1, 4))]
        for index, (start, stop) in enumerate(zip(edges, edges[1:])):
            segments[b, start:stop], positions[b, start:stop] = index + 1, np.arange(stop - start)
    return segments, positions


def normals(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.sampled_from([(1, 5, 5, 2, 2, 4), (2, 3, 6, 6, 2, 3)]),  # B, T, S, N, K, H
    causal=st.booleans(),
    window=st.sampled_from([0, 1, 3]),
    with_bias=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_reference_is_the_formula(sizes, causal, window, with_bias, seed):
    B, T, S, N, K, H = sizes
    rng = np.random.default_rng(seed)
    q, k, v, bias = normals(seed, (B, T, N, H), (B, S, K, H), (B, S, K, H), (B, N, T, S))
    bias = bias if with_bias else None
    q_positions, k_positions = rng.integers(0, 5, (B, T)), rng.integers(0, 5, (B, S))
    q_segments, k_segments = rng.integers(0, 3, (B, T)), rng.integers(0, 3, (B, S))
    visibility = Visibility(q_positions, k_positions, q_segments, k_segments, causal, window)
    got = jax.jit(reference)(q, k, v, visibility, 0.3, bias)
    distance = q_positions[:, :, None] - k_positions[:, None, :]
    mask = q_segments[:, :, None] == k_segments[:, None, :]
    mask &= (distance >= 0) | (not causal)
    mask &= (distance < window) | (window == 0)
    sees = mask.any(-1)  # a query that sees nothing has no answer
    want = plain(q, k, v, mask | ~sees[:, :, None], 0.3, bias)
    # Float32 sums of up to 6 products of order 1.
    np.testing.assert_allclose(np.asarray(got)[sees], want[sees], atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), causal=st.booleans(), window=st.sampled_from([0, 1, 4]))
def test_in_packed_rows_indices_hide_what_positions_hide(seed, causal, window):
    """The law under `packed`, which lets kernels forget the positions."""
    segments, positions = packed_rows(2, 24, seed)
    by_position = Visibility(positions, positions, segments, segments, causal, window).mask_BTS()
    indices = np.broadcast_to(np.arange(24), (2, 24))
    by_index = Visibility(indices, indices, segments, segments, causal, window).mask_BTS()
    real = segments > 0
    np.testing.assert_array_equal(np.asarray(by_position)[real], np.asarray(by_index)[real])


def value_and_gradients(run, q, k, v, visibility, scale):
    """Outputs at real tokens, and the gradients of their product with fixed random numbers."""
    (cotangent,) = normals(7, q.shape)
    real = visibility.q_segments_BT[:, :, None, None] > 0

    def loss(q, k, v, visibility):
        out = jnp.where(real, run(q, k, v, visibility, scale), 0)
        return jnp.sum(out * cotangent), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(
        q, k, v, visibility
    )
    return out, *gradients


def the_case(B, T, N, K, H, causal, window=0):
    """Operands and visibility of packed self-attention."""
    segments, positions = packed_rows(B, T)
    visibility = Visibility(positions, positions, segments, segments, causal, window, packed=True)
    return *normals(3, (B, T, N, H), (B, T, K, H), (B, T, K, H)), visibility


# Sums of up to 256 products of order 1 in another order, in float32.
close = partial(np.testing.assert_allclose, atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("kernel", "case"),
    [
        ("splash", dict(B=2, T=256, N=4, K=2, H=16, causal=True)),
        ("splash", dict(B=1, T=384, N=2, K=1, H=8, causal=True, window=20)),
        ("flash", dict(B=2, T=256, N=4, K=2, H=16, causal=True)),
        (
            "flash",
            dict(B=1, T=128, N=2, K=1, H=24, causal=False),
        ),  # a head that the kernel pads to 32
        (
            "flash",
            dict(B=1, T=150, N=2, K=1, H=16, causal=False),
        ),  # a length that is filled up to 256
    ],
)
def test_kernel_is_the_reference(kernel, case):
    operands = the_case(**case)
    want = value_and_gradients(reference, *operands, 0.3)
    for a, b in zip(value_and_gradients(KERNELS[kernel], *operands, 0.3), want):
        close(a, b)


def test_splash_serves_cross_attention_by_segments_alone():
    q, k, v = normals(1, (1, 128, 2, 8), (1, 256, 1, 8), (1, 256, 1, 8))
    q_segments, k_segments = (packed_rows(1, n, seed=5)[0] for n in (128, 256))
    visibility = Visibility(q_segments * 0, k_segments * 0, q_segments, k_segments, causal=False)
    close(KERNELS["splash"](q, k, v, visibility, 0.3), reference(q, k, v, visibility, 0.3))


CONTEXT = "fsdp:2,context:2,tensor:2"


@pytest.mark.parametrize(
    ("mesh", "heads"),
    [(CONTEXT, (4, 2)), (CONTEXT, (2, 1)), ("fsdp:2,context:4", (2, 1))],
    ids=["two key heads", "fewer key heads than devices", "one key head"],
)
def test_context_parallel_is_one_device(mesh, heads):
    check_on_mesh(mesh, attend_named("xla"), the_case(2, 32, *heads, 8, causal=True, window=11))


@pytest.mark.parametrize("causal", [True, False])
def test_splash_under_context_parallelism_is_one_device(causal):
    check_on_mesh(CONTEXT, KERNELS["splash"], the_case(2, 256, 4, 2, 8, causal=causal))


def test_flash_on_a_mesh_is_one_device():
    check_on_mesh(
        "data:2,fsdp:2,tensor:2", KERNELS["flash"], the_case(4, 128, 4, 2, 8, causal=True)
    )


def attend_named(implementation):
    return lambda q, k, v, visibility, scale: attend(
        q, k, v, visibility, scale=scale, implementation=implementation
    )


def check_on_mesh(mesh, run, operands):
    """`run` with everything spread over the mesh equals the reference on one device."""
    want = value_and_gradients(reference, *operands, 0.3)
    q, k, v, visibility = operands
    made = make_mesh(mesh)
    with jax.set_mesh(made):
        q, k, v = (
            jax.device_put(x, partition(("batch", "length", "heads", "head"), x.shape, made, RULES))
            for x in (q, k, v)
        )
        visibility = jax.device_put(
            visibility, partition(("batch", "length"), q.shape[:2], made, RULES)
        )
        for a, b in zip(value_and_gradients(run, q, k, v, visibility, 0.3), want):
            close(a, b)


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
):
    """What serves a case of these sizes on this mesh."""
    answer = []

    def ask(q, k, tokens, memory):
        visibility = Visibility(tokens, memory, tokens, memory, causal, window, packed)
        answer.append(choose(implementation, q, k, visibility, q if bias else None))

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
