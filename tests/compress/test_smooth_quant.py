"""SmoothQuant, and calibration of whole models: folds change nothing, and each method lowers the
error of the layers."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import tree
from research.compress import calibration, methods, smooth_quant
from research.models.model import Model, forward
from research.models.spec import initialize
from research.weights.matrices import LINEAR
from research.weights.quantized import quantize_array
from research.weights.rules import quantize
from tests.families import FAMILIES, VOCAB

RULES = [(LINEAR, "int4"), (".*", None)]


def to_bytes(x):
    """Activations in int8 with a scale for each row, as an int8 product takes them."""
    scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
    return jnp.round(x / scale) * scale


def test_outliers_of_activations_cost_less_in_int8():
    x = jax.random.normal(jax.random.key(0), (256, 64)).at[:, 7].multiply(100.0)
    w = jax.random.normal(jax.random.key(1), (64, 32))

    def error(factors):
        rounded = quantize_array(w * factors[:, None], "int8", inputs=1).dense()
        return float(jnp.linalg.norm(to_bytes(x / factors[None]) @ rounded - x @ w))

    factors = smooth_quant.smoothing(jnp.max(jnp.abs(x), axis=0), [w])
    assert error(factors) < 0.4 * error(jnp.ones(64))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_factors_are_those_of_equation_4(alpha):
    largest, w = jnp.asarray([1.0, 4.0, 16.0]), jnp.asarray([[1.0, -2.0], [0.5, 0.5], [4.0, 1.0]])
    wanted = np.array([1.0, 4.0, 16.0]) ** alpha / np.array([2.0, 0.5, 4.0]) ** (1 - alpha)
    np.testing.assert_allclose(
        smooth_quant.smoothing(largest, [w[:, :1], w[:, 1:]], alpha), wanted, rtol=1e-6
    )


@cache
def model_of(name):
    """A family's small model with parameters large enough for attention to choose, biases, and
    outliers behind its norms."""
    model = Model(FAMILIES[name])
    params = jax.tree.map(
        lambda w: 4 * w, initialize(jax.random.key(0), model.specs(), jnp.float32)
    )
    biases = {path: w for path, w in tree.paths(params).items() if path.endswith("bias")}
    drawn = {
        path: jax.random.normal(jax.random.key(n), w.shape)
        for n, (path, w) in enumerate(biases.items())
    }
    params = tree.unflatten(tree.paths(params) | drawn)
    for norm in ("attention_norm", "mlp_norm"):
        params["layers"][norm]["scale"] = params["layers"][norm]["scale"].at[:, 3].multiply(20.0)
    return model, params


def batches(seed=0, count=32):
    ids = np.random.default_rng(seed).integers(0, VOCAB, count * 24)
    return calibration.windows(ids, 24, 16)


@pytest.mark.parametrize("name", ["llama2_7b", "llama3_405b", "gpt2", "qwen2.5_7b", "gemma2_2b"])
def test_a_fold_changes_nothing(name):
    model, params = model_of(name)
    layers = []
    for index in range(model.config.layers):
        layer = {path: w[index] for path, w in tree.paths(params["layers"]).items()}
        for before, after in methods.folds(model.config) + methods.inner_folds(model.config):
            inputs = {path: tree.paths(model.specs())[f"layers/{path}"].inputs for path in after}
            size = smooth_quant.as_matrix(layer[after[0]], inputs[after[0]]).shape[0]
            factors = jnp.exp(jax.random.normal(jax.random.key(index), (size,)))
            layer = smooth_quant.fold(layer, before, inputs, factors, model.config.norm_offset)
        layers.append(tree.unflatten(layer))
    folded = {**params, "layers": jax.tree.map(lambda *ws: jnp.stack(ws), *layers)}
    got, want = (forward(model, p, batches()[0]) for p in (folded, params))
    assert not np.array_equal(
        folded["layers"]["attention"]["query"], params["layers"]["attention"]["query"]
    )
    np.testing.assert_allclose(
        got, want, rtol=1e-4, atol=1e-4 * float(jnp.abs(want).max())
    )  # float32 products apart


def test_a_layer_that_adds_nothing_is_wrong_by_all_that_it_should_add():
    model, params = model_of("llama2_7b")
    layers = dict(params["layers"])
    for part, last in (("attention", "out"), ("mlp", "down")):
        layers[part] = layers[part] | {last: layers[part][last].at[1].set(0)}
    changed = {"second": {**params, "layers": layers}, "same": params}
    errors = calibration.layer_errors(model, params, changed, batches(count=16))
    np.testing.assert_allclose(errors["second"], [0, 1], atol=1e-6)
    assert not errors["same"].any()


@pytest.mark.parametrize("name", ["llama3_405b", "gpt2"])
def test_each_method_lowers_the_error_of_layers_on_other_text(name):
    model, params = model_of(name)
    made = {
        m: calibration.calibrate(model, params, RULES, batches(), m, 16) for m in ("gptq", "awq")
    }
    made["rtn"] = quantize(params, model.specs(), RULES, 16)
    errors = calibration.layer_errors(model, params, made, batches(seed=1, count=16))
    errors = {method: error.mean() for method, error in errors.items()}
    assert errors["gptq"] < 0.9 * errors["rtn"] and errors["awq"] < 0.9 * errors["rtn"]


@pytest.mark.parametrize("method", calibration.METHODS)
def test_what_is_made_has_the_form_of_what_is_rounded_to_nearest(method):
    model, params = model_of("llama2_7b")
    rules = [("layers/attention/query", "nf4"), ("layers/mlp/.*", "uint4"), (".*", None)]
    ours = calibration.calibrate(model, params, rules, batches(count=16), method, 16)
    theirs = quantize(params, model.specs(), rules, 16)
    assert jax.tree.map(jax.typeof, ours) == jax.tree.map(jax.typeof, theirs)


def test_smoothing_lowers_the_error_of_int8_activations(monkeypatch):
    model, params = model_of("llama3_405b")
    rules = [(LINEAR, "int8"), (".*", None)]
    made = {"smoothquant": calibration.calibrate(model, params, rules, batches(), "smoothquant")}
    made["rtn"] = quantize(params, model.specs(), rules)
    wanted = forward(model, params, batches(seed=1)[0])
    from research.weights.quantized import Quantized

    einsum = Quantized.einsum
    monkeypatch.setattr(Quantized, "einsum", lambda self, eqn, x: einsum(self, eqn, to_bytes(x)))
    errors = {
        m: float(jnp.linalg.norm(forward(model, p, batches(seed=1)[0]) - wanted))
        for m, p in made.items()
    }
    assert errors["smoothquant"] < 0.8 * errors["rtn"]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda m, p: calibration.calibrate(m, p, RULES, batches(), "nearest"),
            "choose one of gptq, awq",
        ),
        (
            lambda m, p: calibration.calibrate(m, p, RULES, batches(), "awq", 24),
            "layers/.*: groups of 24 do not divide 32 inputs",
        ),
        (
            lambda m, p: calibration.calibrate(
                m, p, [("embed/table", "int8"), (".*", None)], batches(), "gptq"
            ),
            "embed/table",
        ),
        (
            lambda m, p: calibration.windows(np.arange(5), 8, 1),
            "5 tokens do not fill a window of 8",
        ),
        (
            lambda m, p: calibration.calibrate(*model_of("bert_base"), RULES, batches(), "gptq"),
            "calibration runs decoders",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_one_line(call, says):
    with pytest.raises(ValueError, match=says):
        call(*model_of("llama2_7b"))
