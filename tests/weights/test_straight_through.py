"""Training through rounding: what the forward pass sees, whose gradient comes back, and that it is
not biased."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from research.models.model import Model, forward
from research.models.spec import initialize
from research.ops.einsum import einsum
from research.parallel.placement import spec_entries
from research.weights.dynamic import DynamicQuantized, quantize_activations
from research.weights.quantized import quantize_array
from research.weights.rules import quantize
from research.weights.straight_through import Rounded, Rounding, straight_through
from tests.families import FAMILIES, random_batch

MATRICES = r"layers/.*/(query|key|value|out|up|gate|down)"
FEED = r"layers/mlp/(up|gate|down)"
MODEL = Model(FAMILIES["llama2_7b"])
CASES = [
    ("BTD,DNH->BTNH", (64, 4, 8), 1),
    ("BTNH,NHD->BTD", (4, 16, 32), 2),
    ("BTD,VD->BTV", (48, 64), -1),
]


def random(*shape, seed=0):
    return jax.random.normal(jax.random.key(sum(shape) + seed), shape)


def parameters():
    return initialize(jax.random.key(0), MODEL.specs(), np.dtype("float32"))


def operands(eqn, sizes, inputs, format="int8", key=None):
    x_letters, w_letters = eqn.split("->")[0].split(",")
    known = dict(zip(w_letters, sizes)) | {"B": 2, "T": 3}
    leaf = Rounded(random(*sizes), Rounding(format, inputs, len(sizes)), key)
    return random(*(known[letter] for letter in x_letters)), leaf


@pytest.mark.parametrize(
    ("eqn", "sizes", "inputs", "format"),
    [(*case, format) for case, format in zip(CASES, ("int8", "int4", "nf4"))],
)
def test_the_product_is_the_quantized_one_and_the_gradient_passes_the_rounding_by(
    eqn, sizes, inputs, format
):
    x, leaf = operands(eqn, sizes, inputs, format)
    held = quantize_array(leaf.w, format, inputs=inputs)
    y, pull = jax.vjp(lambda x, leaf: leaf.einsum(eqn, x), x, leaf)
    want, pull_held = jax.vjp(lambda x, w: einsum(eqn, x, w), x, held.dense())
    np.testing.assert_array_equal(y, want)
    dy = random(*y.shape, seed=1)
    for got, expected in zip(jax.tree.leaves(pull(dy)), pull_held(dy)):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(leaf.dense(), held.dense())


def test_no_rounded_copy_is_kept_for_the_backward_pass():
    x, leaf = operands(*CASES[0])
    kept = jax.jit(
        lambda x, leaf: jax.vjp(lambda x, leaf: leaf.einsum(CASES[0][0], x), x, leaf)[1]
    )(x, leaf)
    assert sum(part.size for part in jax.tree.leaves(kept)) <= x.size + leaf.size


def trained(format, group, key=None, steps=6):
    """Losses and parameters of a few plain gradient steps, and the logits that the last forward
    pass gave."""
    rules, batch, params = [(FEED, format), (".*", None)], random_batch(2, 8), parameters()

    def loss(params, key):
        logits = forward(MODEL, straight_through(params, MODEL.specs(), rules, group, key), batch)
        picked = jnp.take_along_axis(
            jax.nn.log_softmax(logits), batch["targets"][..., None], axis=-1
        )
        return -jnp.mean(picked), logits

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    losses = []
    for n in range(steps):
        (value, logits), gradient = step(
            params, None if key is None else jax.random.fold_in(key, n)
        )
        losses.append(float(value))
        last, params = params, jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient)
    return losses, last, logits, gradient, quantize(last, MODEL.specs(), rules, group)


def test_training_lowers_the_loss_and_quantizing_gives_what_was_trained():
    losses, params, logits, gradient, held = trained("int4", 32)
    assert losses[-1] < losses[0] - 0.1 and sorted(losses, reverse=True) == losses
    assert float(jnp.abs(gradient["layers"]["mlp"]["up"]).max()) > 0
    batch = random_batch(2, 8)
    # Equal weights, multiplied in another order within a layer: a few units of float32's last
    # place.
    np.testing.assert_allclose(forward(MODEL, held, batch), logits, atol=1e-5)
    assert float(jnp.abs(forward(MODEL, params, batch) - logits).max()) > 1e-3


def test_training_in_integers_lowers_the_loss_too():
    losses, _, logits, _, held = trained("int8", None, key=jax.random.key(3))
    assert losses[-1] < losses[0] - 0.1
    wrapped = quantize_activations(held, [(FEED, True), (".*", False)])
    np.testing.assert_allclose(
        forward(MODEL, wrapped, random_batch(2, 8)), logits, atol=1e-5
    )  # as above


@pytest.mark.parametrize(("eqn", "sizes", "inputs"), CASES)
def test_stochastic_rounding_gives_the_gradient_in_the_mean(eqn, sizes, inputs):
    x, leaf = operands(eqn, sizes, inputs)
    dy = random(*jax.eval_shape(lambda: leaf.einsum(eqn, x)).shape, seed=1)
    held = quantize_array(leaf.w, "int8", inputs=inputs).dense()
    exact = jax.vjp(lambda x, w: jnp.einsum(eqn, x, w), x, held)[1](dy)

    def gradients(key):
        pull = jax.vjp(lambda x, w: Rounded(w, leaf.rounding, key).einsum(eqn, x), x, leaf.w)[1]
        return pull(dy)

    draws = 400
    drawn = jax.jit(jax.vmap(gradients))(
        jax.random.key_data(jax.random.split(jax.random.key(0), draws))
    )
    for samples, mean in zip(drawn, exact):
        error = samples.std(0, ddof=1) / draws**0.5  # the standard error of each element's mean
        z = (samples.mean(0) - mean) / error
        # None of 3,000 standard normal values is beyond 5.5 but in one of 10,000 draws; the mean
        # square of n is 1 with a standard deviation of sqrt(2 / n), here at most 0.1 for 192
        # elements, and elements share draws.
        assert float(jnp.abs(z).max()) < 5.5
        assert float(jnp.mean(z**2)) < 1.6
        # A step is 1/127 of the largest; half of one in each product would be seen.
        assert float(jnp.linalg.norm(samples[0] - mean) / jnp.linalg.norm(mean)) < 0.05


def test_integer_products_are_those_of_dynamic_activations_and_draw_anew_with_each_key():
    x, leaf = operands(*CASES[0], key=jax.random.key_data(jax.random.key(0)))
    y, pull = jax.vjp(lambda x: leaf.einsum(CASES[0][0], x), x)
    np.testing.assert_array_equal(
        y, DynamicQuantized(leaf.rounding.quantized(leaf.w)).einsum(CASES[0][0], x)
    )
    other = Rounded(leaf.w, leaf.rounding, jax.random.key_data(jax.random.key(1)))
    assert not np.array_equal(
        pull(y)[0], jax.vjp(lambda x: other.einsum(CASES[0][0], x), x)[1](y)[0]
    )


@pytest.mark.parametrize("mesh", ["data:2,fsdp:2,tensor:2"], indirect=True)
@pytest.mark.parametrize("key", [None, jnp.zeros(2, jnp.uint32)], ids=["dense", "integers"])
def test_on_a_mesh_products_and_gradients_are_the_same(mesh, key):
    eqn = "BTD,DF->BTF"
    x, w = random(4, 2, 64), random(64, 32)

    def loss(x, w):
        return jnp.sum(Rounded(w, Rounding("int8", 1, 2), key).einsum(eqn, x) ** 2)

    placed = jax.reshard(x, P(("data", "fsdp"))), jax.reshard(w, P("fsdp", "tensor"))
    np.testing.assert_allclose(jax.jit(loss)(*placed), loss(x, w), rtol=1e-6)
    got = jax.jit(jax.grad(loss, argnums=(0, 1)))(*placed)
    for part, want, like in zip(got, jax.grad(loss, argnums=(0, 1))(x, w), placed):
        assert spec_entries(part) == spec_entries(like)
        # float32 sums in another order, of values of some tens; random bits do not depend on where
        # they are drawn.
        np.testing.assert_allclose(part, want, rtol=1e-5, atol=1e-3)


def test_experts_and_tables_are_rounded_too():
    w = random(3, 64, 32)
    leaf = Rounded(w, Rounding("nf4", 1, 2))
    x, sizes = random(6, 64), jnp.asarray([1, 3, 2])
    np.testing.assert_array_equal(
        leaf.dense(), quantize_array(w, "nf4", inputs=1, stacked=1).dense()
    )
    np.testing.assert_array_equal(
        leaf.grouped(x, sizes), jax.lax.ragged_dot(x, leaf.dense(), sizes)
    )
    np.testing.assert_array_equal(leaf.gathered(), leaf.dense())
    table = Rounded(random(48, 64), Rounding("int8", -1, 2))
    rows, pull = jax.vjp(
        lambda w: Rounded(w, table.rounding).take(jnp.asarray([[5, 5, 7]])), table.w
    )
    np.testing.assert_array_equal(
        rows, quantize_array(table.w, "int8", inputs=-1).take(jnp.asarray([[5, 5, 7]]))
    )
    np.testing.assert_array_equal(pull(jnp.ones(rows.shape))[0][:, 0].nonzero()[0], [5, 7])


@pytest.mark.parametrize(
    ("format", "group", "key", "says"),
    [
        ("nf4", 64, None, "layers/.*: groups of 64 do not divide 32 inputs"),
        (
            "int4",
            32,
            jax.random.key(0),
            "layers/.*: integer gradients are of int8 with one scale an output, not int4",
        ),
        (
            "int8",
            32,
            jax.random.key(0),
            "layers/.*: integer gradients are of int8 .* not int8 with group 32",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(format, group, key, says):
    with pytest.raises(ValueError, match=says):
        straight_through(
            parameters(), MODEL.specs(), [(MATRICES, format), (".*", None)], group, key
        )
