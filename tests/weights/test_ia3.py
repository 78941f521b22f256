"""IA3 against peft 0.21.2, and as a leaf over any other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from research import tree
from research.models.model import Model, forward
from research.models.spec import initialize, shardings
from research.parallel.axes import RULES, partition
from research.parallel.mesh import make_mesh
from research.weights.ia3 import Ia3, Ia3Adapter, ia3_specs
from research.weights.quantized import quantize_array
from tests.families import FAMILIES, random_batch
from tests.weights.test_parity import GOLDEN, MODEL, SPECS, batch, params  # noqa: F401


def is_adapter(node):
    """Whether a node is the factors of one weight."""
    return isinstance(node, Ia3Adapter)


def attached(weights, adapters):
    """The weights with their factors."""
    flat = tree.paths(weights)
    return tree.unflatten(
        flat
        | {path: Ia3(flat[path], one) for path, one in tree.paths(adapters, is_adapter).items()}
    )


def merged(weights):
    """Every weight with factors as an array."""
    return jax.tree.map(
        lambda w: w.dense() if isinstance(w, Ia3) else w,
        weights,
        is_leaf=lambda w: isinstance(w, Ia3),
    )


def noisy(adapters):
    """Factors around 1."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda gain: gain + jnp.asarray(0.3 * rng.normal(size=gain.shape), jnp.float32), adapters
    )


def test_logits_and_merged_logits_are_pefts(params):  # noqa: F811
    names = {
        "attention/key": "self_attn.k_proj",
        "attention/value": "self_attn.v_proj",
        "mlp/down": "mlp.down_proj",
    }
    adapters = tree.paths(ia3_specs(SPECS), is_adapter)
    assert set(adapters) == {f"layers/{path}" for path in names}
    for path, name in names.items():
        rows = np.stack(
            [GOLDEN[f"ia3/model.layers.{layer}.{name}.ia3_l.default"] for layer in range(2)]
        )
        spec = adapters[f"layers/{path}"].gain
        adapters[f"layers/{path}"] = Ia3Adapter(
            jnp.asarray(rows.reshape(spec.shape)), path == "mlp/down"
        )
    adapted = attached(params, tree.unflatten(adapters))
    # peft's own logits before and after merging differ by 7e-6 to 2e-5.
    np.testing.assert_allclose(forward(MODEL, adapted, batch()), GOLDEN["logits/ia3"], atol=5e-5)
    np.testing.assert_allclose(
        forward(MODEL, merged(adapted), batch()), GOLDEN["merged/ia3"], atol=5e-5
    )


@pytest.mark.parametrize("name", ["gpt2", "mixtral_8x7b", "t5_small"])
def test_fresh_factors_change_nothing_and_merging_trained_ones_neither(name):
    model = Model(FAMILIES[name])
    weights = initialize(jax.random.key(0), model.specs(), jnp.float32)
    specs = ia3_specs(model.specs())
    rows, logits = random_batch(2, 8), jax.jit(forward, static_argnums=0)
    fresh = initialize(jax.random.key(1), specs, jnp.float32)
    want = logits(model, weights, rows)
    np.testing.assert_array_equal(logits(model, attached(weights, fresh), rows), want)
    trained = attached(weights, noisy(fresh))
    got = logits(model, trained, rows)
    assert np.abs(got - want).max() > 1e-3
    # x W l and x (W l) round apart.
    np.testing.assert_allclose(got, logits(model, merged(trained), rows), atol=2e-4)


@pytest.mark.parametrize(
    ("eqn", "of_x", "of_w", "inputs", "table"),
    [
        ("BTD,DNH->BTNH", (2, 3, 64), (64, 4, 8), 1, False),
        ("BTNH,NHD->BTD", (2, 3, 4, 16), (4, 16, 24), 2, False),
        ("BTD,VD->BTV", (2, 3, 64), (10, 64), -1, True),
    ],
)
@pytest.mark.parametrize("on_inputs", [True, False])
@pytest.mark.parametrize("format", [None, "nf4"])
def test_the_product_is_that_of_the_dense_form(eqn, of_x, of_w, inputs, table, on_inputs, format):
    keys = jax.random.split(jax.random.key(0), 3)
    x, w = jax.random.normal(keys[0], of_x), jax.random.normal(keys[1], of_w)
    base = w if format is None else quantize_array(w, format, inputs=inputs)
    inner = (1,) if table else tuple(range(inputs))
    shape = tuple(n if (axis in inner) == on_inputs else 1 for axis, n in enumerate(of_w))
    leaf = Ia3(base, Ia3Adapter(jax.random.normal(keys[2], shape), on_inputs))
    assert leaf.shape == of_w and leaf.ndim == len(of_w)
    np.testing.assert_allclose(
        leaf.einsum(eqn, x), jnp.einsum(eqn, x, leaf.dense()), atol=1e-4
    )  # sums of 64 terms
    if table:
        ids = jnp.asarray([[3, 7], [0, 9]])
        np.testing.assert_allclose(leaf.take(ids), leaf.dense()[ids], rtol=1e-6)
    stacked = jax.tree.map(lambda part: jnp.stack([part, part]), leaf)
    np.testing.assert_array_equal(stacked.dense()[1], leaf.dense())


@pytest.mark.parametrize("on_inputs", [True, False])
def test_experts_have_factors_of_their_own(on_inputs):
    keys = jax.random.split(jax.random.key(0), 3)
    x_MI, w_EIO = jax.random.normal(keys[0], (7, 8)), jax.random.normal(keys[1], (3, 8, 6))
    sizes = jnp.asarray([2, 4, 1])
    leaf = Ia3(
        w_EIO,
        Ia3Adapter(jax.random.normal(keys[2], (3, 8, 1) if on_inputs else (3, 1, 6)), on_inputs),
    )
    want = jax.lax.ragged_dot(x_MI, leaf.dense(), sizes)
    np.testing.assert_allclose(leaf.grouped(x_MI, sizes), want, atol=1e-5)  # sums of 8 terms


@pytest.mark.parametrize(
    ("name", "at"), [("llama2_7b", "fsdp:4,tensor:2"), ("mixtral_8x7b", "expert:2,fsdp:2,tensor:2")]
)
def test_a_mesh_changes_nothing(name, at):
    model, mesh = Model(FAMILIES[name]), make_mesh(at)
    specs = ia3_specs(
        model.specs(), outputs=r"layers/(attention|mlp)/(key|value|up)", inputs="down|query"
    )
    adapters, rows = noisy(initialize(jax.random.key(1), specs, jnp.float32)), random_batch(4, 8)
    weights = initialize(jax.random.key(0), model.specs(), jnp.float32)
    rows = {field: rows[field] for field in ("inputs", "positions", "segments")}
    logits = jax.jit(
        lambda adapters, weights, rows: forward(model, attached(weights, adapters), rows)
    )
    want = np.asarray(logits(adapters, weights, rows))
    places = shardings(specs, mesh, RULES), shardings(model.specs(), mesh, RULES)
    with jax.set_mesh(mesh):
        there = NamedSharding(mesh, partition(("batch", "length"), (4, 8), mesh, RULES))
        got = logits(*jax.device_put((adapters, weights), places), jax.device_put(rows, there))
    np.testing.assert_allclose(got, want, atol=2e-5)  # float order


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (dict(outputs="keys"), "'keys' matches no parameter; the nearest are"),
        (dict(outputs="final_norm/scale"), "final_norm/scale is no matrix"),
        (dict(outputs="down"), "let only one match it"),
    ],
)
def test_targets_that_do_not_fit_are_named(targets, says):
    with pytest.raises(ValueError, match=says):
        ia3_specs(SPECS, **targets)
