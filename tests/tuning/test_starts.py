"""Initialisations against peft 0.21.2, and what their papers say of them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import tree
from research.models.model import Model, forward
from research.models.spec import initialize, shardings
from research.parallel.axes import RULES
from research.parallel.mesh import make_mesh
from research.tuning.lora_init import loftq, start
from research.tuning.lora_specs import LoraConfig, lora_specs
from research.weights.lora import LoraAdapter
from research.weights.quantized import quantize_array
from research.weights.rules import attach, is_leaf, merge, quantize, quantize_specs
from tests.families import FAMILIES, random_batch
from tests.weights.test_parity import (  # noqa: F401
    GOLDEN,
    MODEL,
    PROJECTIONS,
    SPECS,
    batch,
    params,
    theirs,
)

TAKEN = ("pissa", "olora")
NF4 = [(r"layers/attention/(query|out)", "nf4"), (".*", None)]


def fresh(specs, **fields):
    """Adapters that are the identity."""
    config = LoraConfig(**{"rank": 4, "alpha": 8.0, **fields})
    return initialize(jax.random.key(1), lora_specs(specs, config), jnp.float32)


def svd_rounding(w: np.ndarray, rank: int) -> float:
    """How far the leading parts of a matrix by two float32 decompositions can lie apart, whatever
    the processor: each is off by the rounding of the matrix, over the gap that tells the last
    singular vector that is taken from the first that is not (Wedin's bound)."""
    values = np.linalg.svd(w.astype(np.float64), compute_uv=False)
    rounding = np.finfo(np.float32).eps * values[0]
    return 2 * rounding * values[0] / (values[rank - 1] - values[rank])


@pytest.mark.parametrize("method", TAKEN)
def test_factors_and_residuals_are_pefts(method, params):  # noqa: F811
    adapters, base = start(method, fresh(SPECS, rank=8, alpha=16.0), params, SPECS)
    for name, (path, inputs, module) in PROJECTIONS.items():
        adapter, w = (
            tree.paths(adapters, is_leaf)[f"layers/{path}"],
            tree.paths(base)[f"layers/{path}"],
        )
        for layer in range(2):
            a, b = (theirs(method, layer, name, f"lora_{side}.default.weight") for side in "AB")
            got = np.asarray(adapter.a[layer]).reshape(-1, 8) @ np.asarray(
                adapter.b[layer]
            ).reshape(8, -1)
            original = np.asarray(tree.paths(params)[f"layers/{path}"][layer])
            atol = svd_rounding(original.reshape(got.shape), 8)
            np.testing.assert_allclose(got, (b @ a).T, atol=atol)
            want = GOLDEN[f"{method}_base/model.layers.{layer}.{module}.{name}.base_layer.weight"]
            residual = np.asarray(w[layer]).reshape(want.T.shape)
            np.testing.assert_allclose(residual, want.T, atol=atol)
    # peft's own logits before and after merging differ by 7e-6 to 2e-5.
    np.testing.assert_allclose(
        forward(MODEL, attach(base, adapters), batch()), GOLDEN[f"logits/{method}"], atol=5e-5
    )


@pytest.mark.parametrize(("name", "method"), [("gpt2", "pissa"), ("mixtral_8x7b", "olora")])
def test_a_start_takes_from_the_base_what_it_gives_the_adapter(name, method):
    specs = Model(FAMILIES[name]).specs()
    # Also of tables, whose inputs are their last axis, and of experts, which are stacked twice.
    own = fresh(specs, targets=r"layers/(attention|mlp)/(query|out|down)|embed/table")
    weights = initialize(jax.random.key(0), specs, jnp.float32)
    adapters, base = start(method, own, weights, specs)
    assert jax.tree.structure((adapters, base)) == jax.tree.structure((own, weights))
    got = tree.paths(merge(attach(base, adapters)))
    for path, w in tree.paths(weights).items():
        # Residual and product round apart, at the size of the weights.
        np.testing.assert_allclose(got[path], w, atol=1e-5 * float(jnp.abs(w).max()), err_msg=path)
        assert (path in tree.paths(adapters, is_leaf)) != np.array_equal(
            tree.paths(base)[path], w
        ), path


@pytest.mark.parametrize("format", ["nf4", "uint4"])
def test_loftq_loses_less_than_quantization_and_no_more_with_every_step(format):
    w = jax.random.normal(jax.random.key(0), (128, 96))

    @jax.jit
    def rounded(w):
        return quantize_array(w, format, inputs=1, group=32).dense()

    @jax.jit
    def after(steps):
        (a, b), base = loftq(w, 8, 2.0, rounded, steps)
        return np.float32(2) * a @ b, base, rounded(base)

    errors, update = [float(jnp.linalg.norm(w - rounded(w)))], jnp.zeros_like(w)
    for steps in (1, 2, 3, 4, 5):
        before = update
        update, base, kept = after(steps)
        np.testing.assert_allclose(
            base, w - before, atol=1e-5
        )  # float order: each step from where the last one stood
        errors.append(float(jnp.linalg.norm(w - kept - update)))
        # The best that rank 8 can do: the singular values beyond it.
        assert errors[-1] == pytest.approx(np.linalg.norm(np.linalg.svd(w - kept)[1][8:]), rel=1e-5)
    assert errors[1] < 0.95 * errors[0]
    # The steps are no descent, for codes are the nearest and not the best: by so little may one
    # lose.
    assert (
        all(later < 1.002 * earlier for earlier, later in zip(errors, errors[1:]))
        and errors[5] < errors[1]
    )


@pytest.mark.parametrize("method", ["default", "pissa", "loftq"])
def test_a_fresh_dora_is_the_weight_that_it_lies_on(method):
    model = Model(replace(FAMILIES["llama2_7b"], d_model=64, head_size=16))
    weights, rows = initialize(jax.random.key(0), model.specs(), jnp.float32), random_batch(2, 8)
    targets = "out"
    with_magnitude = start(
        method, fresh(model.specs(), targets=targets, decompose=True), weights, model.specs(), NF4
    )
    without = start(method, fresh(model.specs(), targets=targets), weights, model.specs(), NF4)
    logits = jax.jit(lambda adapters, base: forward(model, attach(base, adapters), rows))
    got, want = logits(*with_magnitude), logits(*without)
    np.testing.assert_allclose(got, want, atol=2e-5)  # a column times its norm over its norm
    magnitude = with_magnitude[0]["layers"]["attention"]["out"].magnitude
    merged = merge(attach(without[1], without[0]))["layers"]["attention"]["out"]
    np.testing.assert_allclose(
        magnitude, jnp.linalg.norm(merged.reshape(2, -1, 64), axis=1), rtol=1e-5
    )
    plain = quantize(weights, model.specs(), NF4)
    assert jax.tree.structure(without[1]) == jax.tree.structure(plain)
    if method == "loftq":
        w = weights["layers"]["attention"]["out"]
        assert jnp.linalg.norm(merged - w) < 0.9 * jnp.linalg.norm(
            plain["layers"]["attention"]["out"].dense() - w
        )


def test_a_mesh_changes_nothing():
    model, mesh = Model(FAMILIES["llama2_7b"]), make_mesh("fsdp:2,tensor:2,data:2")
    specs, config = model.specs(), LoraConfig(rank=4, targets=r"query|out|down", decompose=True)
    weights = initialize(jax.random.key(0), specs, jnp.float32)
    own = initialize(jax.random.key(1), lora_specs(specs, config), jnp.float32)
    rules = [
        ("layers/mlp/up", "int8"),
        ("layers/(attention/(out|query|key)|mlp/down)", "uint4"),
        (".*", None),
    ]
    want = start("pissa", own, weights, specs, rules, 8)
    places = shardings(lora_specs(specs, config), mesh, RULES), shardings(specs, mesh, RULES)
    with jax.set_mesh(mesh):
        got = start("pissa", *jax.device_put((own, weights), places), specs, rules, 8)
        assert jax.tree.map(lambda x: x.sharding, got) == (
            places[0],
            shardings(quantize_specs(specs, rules, 8), mesh, RULES),
        )
    got, want = (
        tree.paths(merge(attach(base, adapters))) for adapters, base in (jax.device_get(got), want)
    )
    for path, w in want.items():
        np.testing.assert_allclose(
            got[path], w, atol=1e-5, err_msg=path
        )  # the same arithmetic, compiled elsewhere


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("pisa", "choose one of default, pissa, olora, loftq"),
        ("loftq", "loftq wants layers/attention/(query|key) quantized"),
    ],
)
def test_what_cannot_start_says_why(method, says, params):  # noqa: F811
    with pytest.raises(ValueError, match=says):
        start(method, fresh(SPECS, targets="query|key"), params, SPECS)


def test_adapters_of_scale_0_cannot_start_from_their_weights(params):  # noqa: F811
    silent = jax.tree.map(
        lambda adapter: replace(adapter, scale=0 * adapter.scale),
        fresh(SPECS, targets="query|key"),
        is_leaf=lambda node: isinstance(node, LoraAdapter),
    )
    with pytest.raises(ValueError, match="scale of layers/attention/key.*config.lora.alpha"):
        start("pissa", silent, params, SPECS)


def test_quantized_weights_are_no_start(params):  # noqa: F811
    base = quantize(params, SPECS, NF4)
    with pytest.raises(ValueError, match="layers/attention/query is a Quantized already"):
        start("pissa", fresh(SPECS, targets="query"), base, SPECS)
    assert start("default", fresh(SPECS, targets="query"), base, SPECS)[1] is not None
    with pytest.raises(ValueError, match="made for another model"):
        start("pissa", fresh(SPECS, targets="query"), params["embed"], SPECS)
