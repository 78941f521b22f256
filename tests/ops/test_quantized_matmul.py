"""The quantized product's kernels, interpreted on this machine: values, gradients, meshes, and what
they refuse."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from research.ops.einsum import contract
from research.ops.kernels import (
    quantized_matmul,
    quantized_matmul_gpu,
    quantized_matmul_tpu,
    quantized_matvec_gpu,
)
from research.ops.kernels.codes import decode
from research.ops.kernels.notes import warn_once
from research.parallel.placement import gather, spec_entries
from research.weights.formats import FORMATS
from research.weights.quantized import quantize_array

GOLDEN = np.load(Path(__file__).parent.parent / "weights" / "golden_peft_bitsandbytes.npz")
KERNELS = {"tpu": quantized_matmul_tpu, "gpu": quantized_matmul_gpu}
BATCH = ("data", "fsdp", "expert")


def random(*shape):
    return jax.random.normal(jax.random.key(sum(shape)), shape)


def operands(format, inputs, outputs, group):
    """Codes, float scales and book of a random weight, and its dense form, all of
    `research.weights`."""
    w = quantize_array(random(inputs, outputs), format, inputs=1, group=group)
    book = FORMATS[format].book
    return w.codes, w.plain_scale(), None if book is None else tuple(book), w.dense()


def interpreted(kernel):
    """A kernel module that runs on any device."""
    return SimpleNamespace(
        PLATFORM=kernel.PLATFORM,
        refusal=kernel.refusal,
        faster=lambda rows, codes, book, transposed: not transposed or kernel is KERNELS["tpu"],
        matmul=partial(kernel.matmul, interpret=True),
    )


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch):
    """The kernels, taken for this machine's, with small tiles on TPU: groups of 512 below are cut
    into several."""
    monkeypatch.setattr(quantized_matmul_tpu, "TILE", 128)
    made = interpreted(KERNELS[request.param])
    monkeypatch.setattr(quantized_matmul, "_kernels", lambda: (made,))
    return made


@pytest.mark.parametrize(
    ("format", "group"),
    [
        ("int8", 64),
        ("int8", 0),
        ("int4", 64),
        ("int4", 0),
        ("nf4", 64),
        ("nf4", 0),
        ("fp4", 64),
        ("fp8_e4m3", 0),
    ],
)
def test_both_products_are_those_of_the_dense_weight(kernel, format, group):
    codes, scale, book, w = operands(format, 512, 128, group)
    x, dy = random(20, 512), random(20, 128)
    multiply = partial(kernel.matmul, codes_NRO=codes, scale_N1O=scale, book=book)
    # Float32 sums of 512 products of order 1, in another order.
    np.testing.assert_allclose(multiply(x), x @ w, atol=2e-4)
    if kernel.PLATFORM == "tpu":  # a GPU takes XLA's form for it
        np.testing.assert_allclose(multiply(dy, transposed=True), dy @ w.T, atol=2e-4)
    xla = partial(quantized_matmul.reference, codes_NRO=codes, scale_N1O=scale, book=book)
    np.testing.assert_allclose(xla(x), x @ w, atol=2e-4)
    np.testing.assert_allclose(xla(dy, transposed=True), dy @ w.T, atol=2e-4)


@pytest.mark.parametrize("tokens", [1, 300])
def test_any_number_of_tokens_will_do(kernel, tokens):
    codes, scale, book, w = operands("nf4", 128, 128, 64)
    x = random(tokens, 128)
    np.testing.assert_allclose(
        kernel.matmul(x, codes, scale, book=book), x @ w, atol=1e-4
    )  # as above, of 128


def test_in_bfloat16_the_sum_is_rounded_once(kernel):
    codes, scale, _, w = operands("int4", 512, 128, 64)
    x = random(16, 512).astype(jnp.bfloat16)
    y = kernel.matmul(x, codes, scale)
    want = np.asarray(x, np.float64) @ np.asarray(w.astype(jnp.bfloat16), np.float64)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(y, np.float64), want, rtol=2**-8, atol=1e-3
    )  # half a unit of its last place


def test_the_product_with_one_is_bitsandbytes_dense_weight(kernel):
    w = GOLDEN["base/model.layers.0.mlp.down_proj.weight"].T
    made = quantize_array(jnp.asarray(w), "nf4", inputs=1)
    dense = kernel.matmul(
        jnp.eye(len(w)), made.codes, made.plain_scale(), book=tuple(FORMATS["nf4"].book)
    )
    np.testing.assert_allclose(
        dense.T, GOLDEN["dq/0/down_proj"], rtol=0, atol=3e-7
    )  # the last bit of the scales' mean


def test_the_product_with_one_is_llm_int8s_dense_weight(kernel):
    codes, scale = (
        jnp.asarray(GOLDEN["l8/CB"].T)[None],
        jnp.asarray(GOLDEN["l8/SCB"] / np.float32(127))[None, None],
    )
    dense = kernel.matmul(jnp.eye(256), codes, scale)
    want = GOLDEN["l8/CB"].T.astype(np.float64) * GOLDEN["l8/SCB"] / 127
    np.testing.assert_allclose(dense, want, rtol=3e-7)  # two roundings of float32


# Equation, sizes of the weight's axes, how many are inputs, axes of x, of the weight's groups and
# outputs as stored.
CASES = [
    ("BTD,DF->BTF", (128, 128), 1, P(BATCH, "context", None), ("fsdp",), ("tensor",)),
    ("BTF,FD->BTD", (128, 64), 1, P(BATCH, None, "tensor"), ("tensor",), ("fsdp",)),
    ("BTD,DNH->BTNH", (128, 2, 32), 1, P(BATCH, None, None), ("fsdp",), ("tensor", None)),
    ("BTNH,NHD->BTD", (2, 64, 64), 2, P(BATCH, None, "tensor", None), ("tensor",), ("fsdp",)),
]


def placed_case(eqn, sizes, inputs, of_x, groups, outputs):
    x_letters, w_letters = eqn.split("->")[0].split(",")
    made = quantize_array(random(*sizes), "nf4", inputs=inputs)
    known = dict(zip(w_letters, sizes)) | {"B": 4, "T": 2}
    x = jax.reshard(random(*(known[letter] for letter in x_letters)), of_x)
    where = P(*groups, None, *outputs)
    return made, x, jax.reshard(made.codes, where), jax.reshard(made.plain_scale(), where)


@pytest.mark.parametrize("mesh", ["data:2,fsdp:2,tensor:2"], indirect=True)
# The seam is the same for both, and this one has both products.
@pytest.mark.parametrize("kernel", ["tpu"], indirect=True)
@pytest.mark.parametrize("case", CASES)
def test_on_a_mesh_values_and_places_are_those_of_the_dense_contraction(mesh, kernel, case):
    eqn, book = case[0], tuple(FORMATS["nf4"].book)
    made, x, codes, scale = placed_case(*case)
    (of_x, of_w), of_y = eqn.split("->")[0].split(","), eqn.split("->")[1]
    stored = P(*case[4], *(None,) * (case[2] - 1), *case[5])

    def both(x, codes, scale, w):
        codes, scale = gather(codes), gather(scale)
        y, want = quantized_matmul.product(eqn, x, codes, scale, book), contract(eqn, x, gather(w))
        dx = quantized_matmul.pullback(eqn, want, codes, scale, made.inputs, book)
        return (y, want), (dx, contract(f"{of_y},{of_w}->{of_x}", want, gather(w)))

    for got, want in jax.jit(both)(x, codes, scale, jax.reshard(made.dense(), stored)):
        assert spec_entries(got) == spec_entries(want)
        np.testing.assert_allclose(
            got, want, rtol=1e-5, atol=1e-3
        )  # float32 sums, of values of some tens


@pytest.mark.parametrize("mesh", ["fsdp:8"], indirect=True)
# The seam is the same for both, and this one has both products.
@pytest.mark.parametrize("kernel", ["tpu"], indirect=True)
def test_it_runs_in_layers_that_are_scanned_checkpointed_and_mapped_over_devices(mesh, kernel):
    w = quantize_array(0.05 * random(3, 128, 128), "int4", inputs=1, stacked=1)

    @jax.custom_vjp
    def multiply(x, codes, scale):
        return quantized_matmul.product("BTD,DF->BTF", x, codes, scale)

    def backward(saved, dy):
        return quantized_matmul.pullback("BTD,DF->BTF", dy, *saved, (128,)), None, None

    multiply.defvjp(lambda x, *w: (multiply(x, *w), w), backward)

    def loss(x, layers, product):
        step = jax.checkpoint(lambda x, layer: (jnp.tanh(product(x, *layer)), None))
        return jnp.sum(jax.lax.scan(step, x, layers)[0])

    def dense(x, codes, scale):
        return jnp.einsum("BTD,DF->BTF", x, quantized_matmul.dense(codes, scale, None, x.dtype))

    layers, x = (w.codes, w.plain_scale()), random(8, 2, 128)
    gradient, placed = jax.grad(partial(loss, product=multiply)), jax.reshard(x, P("fsdp"))
    mapped = jax.shard_map(
        gradient, in_specs=(P("fsdp"), P()), out_specs=P("fsdp"), check_vma=False
    )
    want = jax.grad(partial(loss, product=dense))(x, layers)
    for dx in (jax.jit(gradient)(placed, layers), jax.jit(mapped)(placed, layers)):
        np.testing.assert_allclose(
            dx, want, atol=1e-5
        )  # three layers of float32 sums of 128 products below 1


@pytest.mark.parametrize("mesh", ["data:2,fsdp:2,tensor:2"], indirect=True)
@pytest.mark.parametrize(
    ("eqn", "x", "codes", "why"),
    [
        (
            "BTD,VD->BTV",
            (2, 4, 64),
            (96, 1, 32),
            "does not sum over the last axes of x and the first of the weight",
        ),
        ("BTD,DF->BTF", (2, 4, 48), (2, 12, 64), "set config.quantize.group to 64 or 128"),
        ("BTD,DF->BTF", (2, 4, 64), (1, 32, 1025), "1025 outputs must be a multiple of"),
    ],
)
def test_what_does_not_fit_is_left_to_xla_and_said(mesh, kernel, caplog, eqn, x, codes, why):
    warn_once.cache_clear()
    made = jnp.zeros(codes, jnp.uint8), jnp.ones((codes[0], 1, codes[2]))
    assert quantized_matmul.product(eqn, jnp.ones(x), *made) is None
    assert why in caplog.text


def test_the_cpu_has_no_kernel():
    codes, scale, book, _ = operands("nf4", 64, 128, 64)
    assert quantized_matmul.product("MI,IO->MO", random(2, 64), codes, scale, book) is None
    assert quantized_matmul.pullback("MI,IO->MO", random(2, 128), codes, scale, (64,), book) is None


@pytest.mark.parametrize(
    ("format", "first", "last"), [("int8", 1, 16), ("int4", 1, 16), ("nf4", 2, 16)]
)
def test_on_gpu_the_kernel_serves_the_rows_at_which_it_was_measured_to_win(
    format, first, last, monkeypatch
):
    monkeypatch.setattr(
        quantized_matmul, "_kernels", lambda: (quantized_matvec_gpu, quantized_matmul_gpu)
    )
    codes, scale, book, w = operands(format, 64, 32, 0)

    def served(rows):
        x, dy = jax.ShapeDtypeStruct((rows, 1, 64), "float32"), random(rows, 1, 32)
        y = jax.eval_shape(
            lambda x: quantized_matmul.product("BTD,DF->BTF", x, codes, scale, book), x
        )
        # Its other product lost at every size that was timed.
        assert quantized_matmul.pullback("BTD,DF->BTF", dy, codes, scale, (64,), book) is None
        return y is not None

    monkeypatch.setattr(quantized_matvec_gpu, "matmul", lambda *a, **n: pytest.fail("untimed"))
    assert [rows for rows in (1, 2, 16, 17, 64, 4096) if served(rows)] == [
        rows for rows in (1, 2, 16) if first <= rows <= last
    ]


@pytest.mark.parametrize("tokens", [1, 3, 8])
@pytest.mark.parametrize(
    ("format", "group", "outputs"),
    [("nf4", 64, 1536), ("nf4", 0, 48), ("fp4", 64, 512), ("int4", 64, 512), ("int8", 0, 576)],
)
def test_the_kernel_for_few_rows_is_the_product_of_the_dense_weight(
    monkeypatch, format, group, outputs, tokens
):
    # Programs that share outputs, and steps that share a group.
    monkeypatch.setattr(quantized_matvec_gpu, "PROGRAMS", 8)
    codes, scale, book, w = operands(format, 256, outputs, group)
    x = random(tokens, 256)
    y = jax.jit(partial(quantized_matvec_gpu.matmul, book=book, interpret=True))(x, codes, scale)
    # Float32 sums of 256 products of order 1, in another order.
    np.testing.assert_allclose(y, x @ w, atol=1e-4)


def test_every_code_of_the_kernel_for_few_rows_is_decoded_exactly():
    for bits, codes in ((8, jnp.arange(-128, 128, dtype=jnp.int8)), (4, jnp.arange(256))):
        codes = codes if bits == 8 else codes.astype(jnp.uint8)
        for nibble in range(8 // bits):
            got = quantized_matvec_gpu._decode(codes, nibble)
            np.testing.assert_array_equal(got, decode(codes, nibble, None))


def test_the_kernel_for_few_rows_is_taken_once_a_card_has_timed_it(monkeypatch):
    # What a measurement would write.
    monkeypatch.setattr(quantized_matvec_gpu, "FASTEST", {"book": (1, 8), "8 bits": (1, 1)})
    taken = []
    for name, module in (("few", quantized_matvec_gpu), ("tiled", quantized_matmul_gpu)):
        told = partial(lambda name, x, codes, scale, book: (taken.append(name), x)[1], name)
        monkeypatch.setattr(module, "matmul", told)
    monkeypatch.setattr(
        quantized_matmul, "_kernels", lambda: (quantized_matvec_gpu, quantized_matmul_gpu)
    )
    for format in ("nf4", "int8", "fp8_e4m3"):
        codes, scale, book, _ = operands(format, 64, 64, 0)
        for rows in (1, 8, 16):
            quantized_matmul.product("BI,IO->BO", random(rows, 64), codes, scale, book)
    # float8 codes are none of its; the tiled kernel has them.
    assert taken == ["few", "few", "tiled", "few", "tiled", "tiled", "tiled", "tiled", "tiled"]
