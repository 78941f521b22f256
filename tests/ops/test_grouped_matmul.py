"""The grouped products' TPU kernels, interpreted on this machine, against `lax.ragged_dot` and its
own gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from research.ops import grouped as grouped_op
from research.ops import route
from research.ops.kernels import grouped_matmul
from research.ops.kernels import grouped_matmul_tpu as tpu
from research.parallel.mesh import make_mesh
from research.weights.quantized import Quantized, quantize_array

M, I, O = 300, 96, 160
# Sums of 96 to 300 products of order 1, in another order; bfloat16 rounds a sum of float32 once,
# half a unit of 8 bits.
FLOAT32 = dict(rtol=0, atol=1e-4)
BFLOAT16 = dict(rtol=2**-8, atol=2e-2)
SIZES = {
    "even": [75, 75, 75, 75],
    "uneven": [3, 130, 100, 67],
    "empty": [0, 140, 0, 160],
    "last empty": [128, 172, 0, 0],
    "rows behind": [70, 0, 129, 41],
    "no rows": [0, 0, 0, 0],
}


def random(*shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(sum(shape)), shape).astype(dtype)


@pytest.fixture
def interpreted(monkeypatch):
    """The kernels, taken for this machine's, with tiles that the sizes below need several of."""
    monkeypatch.setattr(grouped_matmul, "ORDER", [("cpu", None, ("megablox",))])
    monkeypatch.setattr(tpu, "TILE", 128)
    monkeypatch.setattr(tpu, "_columns", lambda size, limit: min(size, 128))
    for name in ("rows", "rows_of_leaf", "matrices"):
        monkeypatch.setattr(tpu, name, partial(getattr(tpu, name), interpret=True))


def product_and_gradients(multiply, x, w, dy, inside):
    """Of what `multiply` makes of x and w, of which only rows that are `inside` a group count."""

    def loss(x, w):
        y = multiply(x, w)
        return jnp.sum(jnp.where(inside, y, 0).astype(jnp.float32) * dy.astype(jnp.float32)), y

    (_, y), (dx, dw) = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, w)
    return jnp.where(inside, y, 0), dx, dw


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_the_product_and_both_gradients_are_those_of_ragged_dot(interpreted, dtype, sizes):
    sizes, inside = jnp.array(sizes, jnp.int32), (jnp.arange(M) < sum(sizes))[:, None]
    x, w, dy = random(M, I, dtype=dtype), random(4, I, O), random(M, O, dtype=dtype)
    w = w.astype(dtype).astype(jnp.float32)
    got = product_and_gradients(lambda x, w: grouped_op.grouped(x, w, sizes), x, w, dy, inside)
    exact = partial(jax.lax.ragged_dot, group_sizes=sizes, precision="highest")
    want = product_and_gradients(exact, x.astype(jnp.float32), w, dy.astype(jnp.float32), inside)
    assert [a.dtype for a in got] == [
        dtype,
        dtype,
        jnp.float32,
    ]  # the parameter's gradient is as the parameter
    tolerances = [FLOAT32 if a.dtype == jnp.float32 else BFLOAT16 for a in got]
    for a, b, tolerance in zip(got, want, tolerances):
        np.testing.assert_allclose(np.asarray(a, np.float32), b, **tolerance)


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "xla"])
def test_rows_of_no_group_touch_nothing(request, kernel):
    if kernel:
        request.getfixturevalue("interpreted")
    sizes, n = jnp.array(SIZES["rows behind"], jnp.int32), sum(SIZES["rows behind"])
    x, w, dy = random(M, I), random(4, I, O), random(M, O)
    gradients = lambda x, dy: jax.vjp(lambda x, w: grouped_op.grouped(x, w, sizes), x, w)[1](dy)
    clean, spoilt = gradients(x, dy), gradients(x.at[n:].set(jnp.nan), dy.at[n:].set(jnp.nan))
    for a, b in zip(clean, spoilt):
        np.testing.assert_array_equal(a, b)
    assert not np.any(spoilt[0][n:]) and np.any(spoilt[0][:n])


@pytest.mark.parametrize("rows", [1, 130])
def test_any_number_of_rows_will_do(interpreted, rows):
    sizes = jnp.array([rows - rows // 2, rows // 2], jnp.int32)
    x, w = random(rows, I), random(2, I, O)
    want = jax.lax.ragged_dot(x, w, sizes, precision="highest")
    np.testing.assert_allclose(grouped_op.grouped(x, w, sizes), want, **FLOAT32)


@pytest.mark.parametrize(
    ("size", "tile"),
    [(14336, 1024), (4096, 1024), (1792, 896), (16, 16), (1000, 1000), (1500, 1024)],
)
def test_tiles_fill_an_axis_evenly_where_they_can(size, tile):
    assert tpu._columns(size, 1024) == tile


def test_a_type_that_the_kernels_do_not_know_is_xla_s(interpreted):
    x, w, sizes = random(4, I, dtype=jnp.float16), random(2, I, O), jnp.array([2, 2], jnp.int32)
    case = grouped_matmul.Case(4, 2, I, O, x.dtype)
    assert "config.precision.compute" in tpu.refusal(case, named=False)
    np.testing.assert_array_equal(
        grouped_op.grouped(x, w, sizes), jax.lax.ragged_dot(x, w.astype(x.dtype), sizes)
    )


QUANTIZED = [("nf4", "uneven"), ("int8", "rows behind"), ("uint4", "no rows")]


@pytest.mark.parametrize(("format", "sizes"), QUANTIZED)
def test_a_quantized_bank_goes_expert_by_expert_through_the_kernel(
    interpreted, monkeypatch, format, sizes
):
    w = quantize_array(random(4, 128, O), format, inputs=1, stacked=1)
    sizes, x, dy = jnp.array(SIZES[sizes], jnp.int32), random(M, 128), random(M, O)
    inside = (jnp.arange(M) < jnp.sum(sizes))[:, None]
    want, to_x = jax.vjp(lambda x: grouped_op.grouped(x, w.dense(), sizes), x)
    # All that is dense at a time is one expert.
    decoded, dense = set(), Quantized.dense
    monkeypatch.setattr(
        Quantized, "dense", lambda w, dtype: (decoded.add(w.shape), dense(w, dtype))[1]
    )
    got, to_x_of_codes = jax.vjp(lambda x: grouped_op.grouped(x, w, sizes), x)
    # The same tiles in the same order.
    np.testing.assert_array_equal(jnp.where(inside, got, 0), jnp.where(inside, want, 0))
    np.testing.assert_array_equal(to_x_of_codes(dy)[0], to_x(dy)[0])
    assert decoded == {(1, 128, O)}


E, D, F = 4, 32, 16


def swiglu(gate, up):
    return jax.nn.silu(gate) * up


def loss(x, weights, ids, *matrices):
    return jnp.sum(
        jax.checkpoint(lambda *a: route.experts(*a, swiglu))(x, weights, ids, *matrices) ** 2
    )


@pytest.fixture(scope="module")
def alone():
    """Arrays of a layer of experts, and its loss and gradients on one device, by XLA's form."""
    weights, ids = route.top_k(random(8, 4, E), 2)
    arrays = random(8, 4, D), weights, ids, random(E, D, F), random(E, D, F) / 2, random(E, F, D)
    return arrays, jax.device_get(jax.value_and_grad(loss, (0, 1, 3, 4, 5))(*arrays))


@pytest.mark.parametrize("mesh", ["fsdp:2,expert:4", "fsdp:2,expert:2,tensor:2"])
def test_experts_on_a_mesh_are_those_of_one_device(alone, interpreted, mesh):
    """Devices hold few of the rows that they see, and NaN is in the products of the others."""
    arrays, want = alone
    made = make_mesh(mesh)
    tensor = "tensor" if made.shape["tensor"] > 1 else None
    batch = P(tuple(name for name in ("data", "fsdp", "expert") if made.shape[name] > 1))
    up, down = P("expert", "fsdp", tensor), P("expert", tensor, "fsdp")
    with jax.set_mesh(made):
        placed = [
            jax.device_put(a, jax.NamedSharding(made, at))
            for a, at in zip(arrays, (batch,) * 3 + (up, up, down))
        ]
        got = jax.device_get(jax.jit(jax.value_and_grad(loss, (0, 1, 3, 4, 5)))(*placed))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_allclose(
            a, b, rtol=2e-5, atol=2e-5 * np.abs(b).max()
        )  # float32 sums of 32 to 64 in another order
