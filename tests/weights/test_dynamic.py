"""Products with quantized activations: what they compute, their gradients, meshes, and whole
models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from research.models.model import Model, forward
from research.models.spec import initialize
from research.ops.einsum import einsum
from research.parallel.placement import spec_entries
from research.weights import dynamic
from research.weights.dynamic import (
    DynamicQuantized,
    quantize_activations,
    quantize_tokens,
)
from research.weights.quantized import quantize_array
from research.weights.rules import quantize
from tests.families import FAMILIES, random_batch

MATRICES = r"layers/.*/(query|key|value|out|up|gate|down)"
CHOSEN = [(MATRICES, True), (".*", False)]
CASES = [
    ("BTD,DF->BTF", (64, 32), 1),
    ("BTD,DNH->BTNH", (64, 4, 8), 1),
    ("BTNH,NHD->BTD", (4, 16, 32), 2),
    ("BTD,VD->BTV", (48, 64), -1),
]


def random(*shape):
    return jax.random.normal(jax.random.key(sum(shape)), shape)


def operands(eqn, sizes, inputs, format="int8"):
    x_letters, w_letters = eqn.split("->")[0].split(",")
    known = dict(zip(w_letters, sizes)) | {"B": 2, "T": 3}
    return random(*(known[letter] for letter in x_letters)), quantize_array(
        random(*sizes), format, inputs=inputs
    )


@pytest.mark.parametrize(("eqn", "sizes", "inputs"), CASES)
def test_the_int8_product_is_the_integer_one_to_the_bit(eqn, sizes, inputs):
    x, w = operands(eqn, sizes, inputs)
    letters = eqn.split(",")[0]
    summed = tuple(at for at, letter in enumerate(letters) if letter not in eqn.split("->")[1])
    largest = np.abs(np.asarray(x)).max(summed, keepdims=True)
    codes = np.round(np.asarray(x) * (np.float32(127) * (np.float32(1) / largest)))
    # In float64, where the scales of a token and of an output stand outside an exact sum.
    tokens = codes * largest.astype(np.float64) / 127
    w_letters, of_y = eqn.split("->")[0].split(",")[1], eqn.split("->")[1]
    of_outputs = [size if letter in of_y else 1 for letter, size in zip(w_letters, w.shape)]
    weight = np.asarray(w.codes, np.float64).reshape(w.shape) * np.asarray(w.scale).reshape(
        of_outputs
    )
    want = np.einsum(eqn, tokens, weight)
    np.testing.assert_allclose(
        DynamicQuantized(w).einsum(eqn, x), want, rtol=1e-6
    )  # a few roundings of float32


# Half a step of both: 1 / 254 of the largest, or 2^-4 of each value with 3 bits behind the point
# (2^-3 with 2), of which the sum of 64 keeps the part that does not cancel.
@pytest.mark.parametrize(
    ("format", "bound"), [("int8", 0.02), ("fp8_e4m3", 0.05), ("fp8_e5m2", 0.09)]
)
def test_it_is_near_the_product_of_what_was_quantized(format, bound):
    x, w = random(2, 3, 64), random(64, 32)
    y = DynamicQuantized(quantize_array(w, format, inputs=1)).einsum("BTD,DF->BTF", x)
    assert y.dtype == x.dtype
    assert float(jnp.linalg.norm(y - x @ w) / jnp.linalg.norm(x @ w)) < bound


def test_float8_activations_have_three_bits_and_use_the_whole_range():
    x = random(4, 64) * 10.0 ** jnp.arange(-2, 2)[:, None]
    codes, scale = quantize_tokens("MI,IO->MO", x, jnp.float8_e4m3fn)
    assert codes.dtype == jnp.float8_e4m3fn and scale.shape == (4, 1)
    np.testing.assert_allclose(jnp.abs(codes.astype(jnp.float32)).max(1), 448)  # the largest, exact
    large = jnp.abs(x) > 0.1 * jnp.abs(x).max(1, keepdims=True)
    kept = jnp.where(large, codes.astype(jnp.float32) * scale, 0)
    np.testing.assert_allclose(kept, jnp.where(large, x, 0), rtol=2**-4)


@pytest.mark.parametrize("format", ["int8", "fp8_e4m3"])
def test_a_token_does_not_depend_on_its_neighbours_and_zeros_stay_zero(format):
    x, w = operands(*CASES[0], format)
    leaf = DynamicQuantized(w)
    whole = leaf.einsum("BTD,DF->BTF", x.at[0, 0].set(1000.0).at[0, 1].set(0))
    np.testing.assert_array_equal(whole[1], leaf.einsum("BTD,DF->BTF", x)[1])
    np.testing.assert_array_equal(whole[0, 1], 0)


@pytest.mark.parametrize(("eqn", "sizes", "inputs"), CASES)
def test_the_gradient_is_that_of_the_weight_only_product_and_keeps_the_weight_alone(
    eqn, sizes, inputs
):
    x, w = operands(eqn, sizes, inputs)
    y, pull = jax.vjp(lambda x: DynamicQuantized(w).einsum(eqn, x), x)
    dy = random(*y.shape)
    np.testing.assert_array_equal(pull(dy)[0], jax.vjp(lambda x: w.einsum(eqn, x), x)[1](dy)[0])
    _, compiled = jax.jit(lambda x: jax.vjp(lambda x: DynamicQuantized(w).einsum(eqn, x), x))(x)
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(compiled))
    assert kept <= w.codes.size + 4 * w.scale.size


@pytest.mark.parametrize("mesh", ["data:2,fsdp:2,tensor:2"], indirect=True)
@pytest.mark.parametrize(
    ("case", "of_x", "of_w", "of_y"),
    [
        (CASES[0], P("data"), P(None, None, "tensor"), ("data", None, "tensor")),
        (CASES[2], P("data", None, "tensor", None), P(None, None, "fsdp"), ("data", None, None)),
    ],
)
def test_on_a_mesh_it_computes_the_same(mesh, case, of_x, of_w, of_y):
    x, w = operands(*case)
    want = DynamicQuantized(w).einsum(case[0], x)
    placed = jax.tree.map(lambda part: jax.reshard(part, of_w), w)
    y = jax.jit(lambda x, w: DynamicQuantized(w).einsum(case[0], x))(jax.reshard(x, of_x), placed)
    assert spec_entries(y) == of_y
    np.testing.assert_allclose(y, want, rtol=1e-6)  # integer sums are exact in any order


def test_where_the_chip_has_no_such_product_only_the_weight_is_quantized(monkeypatch):
    x, w = operands(*CASES[0])
    monkeypatch.setattr(dynamic, "multiplies", lambda dtype: False)
    np.testing.assert_array_equal(
        DynamicQuantized(w).einsum("BTD,DF->BTF", x), w.einsum("BTD,DF->BTF", x)
    )


@pytest.mark.parametrize("format", ["int8", "fp8_e4m3"])
def test_a_model_runs_with_it_and_says_nearly_the_same(format):
    model = Model(FAMILIES["llama2_7b"])
    params = initialize(jax.random.key(0), model.specs(), np.dtype("float32"))
    held = quantize(params, model.specs(), [(MATRICES, format), (".*", None)])
    both = quantize_activations(held, CHOSEN)
    batch = random_batch(2, 16)
    base = forward(model, params, batch)
    error = lambda tree: float(jnp.linalg.norm(forward(model, tree, batch) - base))  # noqa: E731
    assert 0.1 * error(held) < error(both) < 4 * error(held)  # two roundings where there was one
    gradient = jax.grad(
        lambda final: jnp.sum(forward(model, both | {"final_norm": final}, batch) ** 2)
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(both["final_norm"])))


@pytest.mark.parametrize(
    ("format", "group", "rules", "says"),
    [
        ("nf4", 32, CHOSEN, "layers/.* is nf4; quantize it to int8 or fp8"),
        (
            "int8",
            32,
            CHOSEN,
            "layers/.* has a scale for each 32 inputs; set config.quantize.group to 0",
        ),
        (
            "int8",
            0,
            [("embed/table", True), (".*", False)],
            "embed/table is .*; quantize it to int8 or fp8",
        ),
        ("int8", 0, [("layers/atention/.*", True), (".*", False)], "nearest are"),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(format, group, rules, says):
    model = Model(FAMILIES["llama2_7b"])
    params = initialize(jax.random.key(0), model.specs(), np.dtype("float32"))
    held = quantize(params, model.specs(), [(MATRICES, format), (".*", None)], group=group)
    with pytest.raises(ValueError, match=says):
        quantize_activations(held, rules)


def test_it_answers_what_a_weight_answers():
    _, w = operands(*CASES[3])
    leaf, ids = DynamicQuantized(w), jnp.asarray([[1, 4]])
    assert (leaf.shape, leaf.ndim, leaf.size, leaf.nbits()) == (w.shape, w.ndim, w.size, w.nbits())
    np.testing.assert_array_equal(leaf.take(ids), w.take(ids))
    np.testing.assert_array_equal(leaf.dense(), w.dense())
    eqn, x = CASES[3][0], random(1, 2, 64)
    np.testing.assert_array_equal(einsum(eqn, x, leaf.gathered()), leaf.einsum(eqn, x))
