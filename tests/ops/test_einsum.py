"""The one einsum: values, gradients, and the shardings that follow from its operands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from research.ops.einsum import add_bias, contract, einsum, take
from research.parallel.placement import gather, spec_entries

BATCH = ("data", "fsdp", "expert")
# Equation, axes of x, axes of the weight as stored, axes of the result: column parallel, row
# parallel, heads, tied head.
CASES = [
    ("BTD,DF->BTF", P(BATCH, "context", None), P("fsdp", "tensor"), (BATCH, "context", "tensor")),
    ("BTF,FD->BTD", P(BATCH, None, "tensor"), P("tensor", "fsdp"), (BATCH, None, None)),
    (
        "BTD,DNH->BTNH",
        P(BATCH, None, None),
        P("fsdp", "tensor", None),
        (BATCH, None, "tensor", None),
    ),
    (
        "BTNH,NHD->BTD",
        P(BATCH, None, "tensor", None),
        P("tensor", None, "fsdp"),
        (BATCH, None, None),
    ),
    ("BTD,VD->BTV", P(BATCH, None, None), P("tensor", "fsdp"), (BATCH, None, "tensor")),
    ("BTD,DF->BTF", P(BATCH, None, None), P(None, None), (BATCH, None, None)),
]


def operands(eqn: str) -> tuple[jax.Array, jax.Array]:
    """Random x and weight, every dimension a multiple of 8."""
    sizes = dict(zip("BTDFNHV", (8, 8, 16, 24, 8, 8, 32)))
    x, w = eqn.split("->")[0].split(",")
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], [sizes[a] for a in x]), jax.random.normal(
        keys[1], [sizes[a] for a in w]
    )


@pytest.mark.parametrize(
    "mesh", ["data:2,fsdp:2,tensor:2", "fsdp:2,context:2,tensor:2"], indirect=True
)
@pytest.mark.parametrize(("eqn", "of_x", "of_w", "of_y"), CASES)
def test_result_and_gradients_have_derived_shardings_and_plain_values(mesh, eqn, of_x, of_w, of_y):
    x, w = operands(eqn)

    def loss(x, w):
        return jnp.sum(jnp.sin(einsum(eqn, x, w)))

    placed = jax.reshard(x, of_x), jax.reshard(w, of_w)
    y = jax.jit(lambda x, w: einsum(eqn, x, w))(*placed)
    assert spec_entries(y) == of_y
    dx, dw = jax.jit(jax.grad(loss, argnums=(0, 1)))(*placed)
    assert spec_entries(dx) == spec_entries(placed[0]) and spec_entries(dw) == spec_entries(
        placed[1]
    )
    want = np.einsum(eqn, x, w)
    np.testing.assert_allclose(y, want, atol=1e-4)  # sums of up to 64 products of order 1


@pytest.mark.parametrize("eqn", sorted({case[0] for case in CASES}))
def test_gradients_are_those_of_jax(eqn):
    x, w = operands(eqn)
    ours = jax.grad(lambda x, w: jnp.sum(jnp.sin(einsum(eqn, x, w))), argnums=(0, 1))(x, w)
    plain = jax.grad(lambda x, w: jnp.sum(jnp.sin(jnp.einsum(eqn, x, w))), argnums=(0, 1))(x, w)
    for got, want in zip(ours, plain):
        np.testing.assert_allclose(got, want, atol=1e-4)  # sums of up to 64 products of order 1


def test_a_weight_stand_in_contracts_itself():
    class Double:
        def einsum(self, eqn, x):
            return 2 * jnp.einsum(eqn, x, jnp.eye(3))

        def take(self, ids):
            return jnp.full((*ids.shape, 3), 7.0)

    x = jnp.ones((1, 2, 3))
    np.testing.assert_array_equal(einsum("BTD,DF->BTF", x, Double()), 2 * x)
    assert take(Double(), jnp.zeros((1, 2), jnp.int32), jnp.bfloat16).dtype == jnp.bfloat16


@pytest.mark.parametrize("mesh", ["data:2,fsdp:2,tensor:2"], indirect=True)
def test_gather_keeps_only_the_axes_that_compute(mesh):
    w = jax.reshard(jnp.ones((8, 8)), P("fsdp", "tensor"))
    assert spec_entries(jax.jit(gather)(w)) == (None, "tensor")


@pytest.mark.parametrize("mesh", ["data:2,fsdp:2,tensor:2"], indirect=True)
def test_two_letters_on_one_mesh_axis_are_refused(mesh):
    x = jax.reshard(jnp.ones((8, 8)), P(None, "tensor"))
    with pytest.raises(ValueError, match="'A' and 'C' are both split over mesh axis 'tensor'"):
        contract("BA,BC->AC", x, x)


@pytest.mark.parametrize("mesh", ["data:2,fsdp:2,tensor:2"], indirect=True)
def test_take_reads_rows_of_a_split_table(mesh):
    table, ids = jnp.arange(64.0).reshape(16, 4), jnp.array([[0, 15], [7, 8], [3, 3], [9, 1]])
    placed = jax.reshard(table, P("tensor", "fsdp")), jax.reshard(ids, P(("data", "fsdp"), None))
    rows = jax.jit(lambda t, i: take(t, i, jnp.float32))(*placed)
    np.testing.assert_array_equal(rows, table[ids])


def test_a_bfloat16_product_is_rounded_once():
    x, w = (a.astype(jnp.bfloat16) for a in operands("BTD,DF->BTF"))
    y = contract("BTD,DF->BTF", x, w)
    assert y.dtype == jnp.bfloat16
    want = jnp.einsum("BTD,DF->BTF", *(a.astype(jnp.float32) for a in (x, w)), precision="highest")
    np.testing.assert_allclose(
        y.astype(jnp.float32), want, rtol=2**-8, atol=1e-6
    )  # half a unit of bfloat16's last place


def test_the_cpu_is_given_the_bfloat16_product_that_it_has():
    x, w = (a.astype(jnp.bfloat16) for a in operands("BTD,DF->BTF"))
    # Forward and both gradients: operands are not widened, which would be a float32 product at its
    # speed.
    loss = jax.grad(
        lambda x, w: jnp.sum(einsum("BTD,DF->BTF", x, w).astype(jnp.float32) ** 2), argnums=(0, 1)
    )
    products = [e for e in jax.make_jaxpr(loss)(x, w).eqns if e.primitive.name == "dot_general"]
    assert len(products) == 3
    for product in products:
        assert [v.aval.dtype for v in (*product.invars, *product.outvars)] == [jnp.bfloat16] * 2 + [
            jnp.float32
        ]


def test_a_bias_gets_the_float32_sum_of_its_gradient():
    # 1001 is no bfloat16 (their step is 4 there), so the sum was not rounded to one.
    gradient = jax.grad(
        lambda b: jnp.sum(add_bias(jnp.ones((7, 143, 3), jnp.bfloat16), b).astype(jnp.float32))
    )(jnp.zeros(3))
    np.testing.assert_array_equal(gradient, [1001.0] * 3)


@pytest.mark.parametrize("mesh", ["fsdp:8", "data:2,fsdp:2,tensor:2"], indirect=True)
def test_a_gradient_is_scattered_to_where_its_weight_is_stored(mesh):
    x, w = jnp.ones((8, 8, 16)), jnp.ones((16, 24))
    placed = jax.reshard(x, P(BATCH, None, None)), jax.reshard(w, P("fsdp", "tensor"))
    text = (
        jax.jit(jax.grad(lambda w, x: jnp.sum(jnp.sin(einsum("BTD,DF->BTF", x, w)))))
        .lower(*placed[::-1])
        .as_text()
    )
    assert text.count("reduce_scatter") == 1
    ids, table = (
        jax.reshard(jnp.zeros((8, 8), jnp.int32), P(BATCH, None)),
        jax.reshard(jnp.ones((32, 16)), P("tensor", "fsdp")),
    )
    text = (
        jax.jit(jax.grad(lambda t: jnp.sum(jnp.sin(take(t, ids, jnp.float32)))))
        .lower(table)
        .as_text()
    )
    assert text.count("reduce_scatter") == 1


def test_gradients_are_in_the_type_of_their_parameter():
    # 1001 equal gradients of 1: a bfloat16 sum would stop at 256, and one that is rounded to it is
    # no 1001.
    x, ids = jnp.ones((7, 143, 1), jnp.bfloat16), jnp.zeros((7, 143), jnp.int32)
    of_product = jax.grad(lambda w: jnp.sum(einsum("BTD,DF->BTF", x, w).astype(jnp.float32)))(
        jnp.ones((1, 3))
    )
    of_table = jax.grad(lambda t: jnp.sum(take(t, ids, jnp.bfloat16).astype(jnp.float32)))(
        jnp.ones((4, 3))
    )
    np.testing.assert_array_equal(of_product, [[1001.0] * 3])
    np.testing.assert_array_equal(of_table, [[1001.0] * 3] + [[0.0] * 3] * 3)


@pytest.mark.parametrize("mesh", ["data:2,fsdp:2,tensor:2"], indirect=True)
def test_the_gradient_of_a_split_table_is_that_of_a_whole_one(mesh):
    table, ids = jnp.arange(64.0).reshape(16, 4), jnp.array([[0, 15], [7, 8], [3, 3], [9, 3]])

    def gradient(table, ids):
        return jax.grad(lambda t: jnp.sum(jnp.sin(take(t, ids, jnp.float32))))(table)

    placed = jax.reshard(table, P("tensor", "fsdp")), jax.reshard(ids, P(("data", "fsdp"), None))
    split = jax.jit(gradient)(*placed)
    assert spec_entries(split) == ("tensor", "fsdp")
    np.testing.assert_allclose(
        split, jax.grad(lambda t: jnp.sum(jnp.sin(t[ids])))(table), rtol=1e-6
    )  # sums of three cosines
