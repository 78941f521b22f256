"""A receipt's numbers against their definitions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.evals.perplexity import score_ids
from research.evals.receipt import compare, size_of
from research.models.model import Model, forward
from research.models.spec import initialize
from research.tuning.lora_specs import LoraConfig, lora_specs
from research.weights.matrices import LINEAR
from research.weights.quantized import quantize_array
from research.weights.rounded_inputs import RoundedInputs
from research.weights.rules import attach, merge, quantize
from tests.families import FAMILIES, VOCAB

MODEL = Model(FAMILIES["llama3_405b"])
IDS = np.random.default_rng(0).integers(0, VOCAB, 4 * 16 + 9)  # the last 8 fill no window


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda w: w * 4, initialize(jax.random.key(0), MODEL.specs(), jnp.float32))


def log_probs(params):
    """Of the places in four windows of 16, float64 [64, V]."""
    inputs = IDS[:64].reshape(4, 16)
    batch = {
        "inputs": inputs,
        "segments": np.ones_like(inputs),
        "positions": np.tile(np.arange(16), (4, 1)),
    }
    logits = np.asarray(forward(MODEL, params, batch), np.float64).reshape(64, -1)
    return logits, logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_a_comparison_is_what_its_words_say(params):
    quantized = quantize(params, MODEL.specs(), [(LINEAR, "int4"), (".*", None)], 16)
    score, made = compare(MODEL, params, {"int4": quantized, "same": params}, IDS, 16)
    (logits, p), (other, q) = log_probs(params), log_probs(quantized)
    kl, got = (np.exp(p) * (p - q)).sum(-1), made["int4"]
    # Log-probabilities are float32 of the order of 10.
    assert got.mean_kl == pytest.approx(kl.mean(), rel=1e-4) and got.kl_99 == pytest.approx(
        np.quantile(kl, 0.99), rel=1e-4
    )
    assert got.flip_rate == (logits.argmax(-1) != other.argmax(-1)).mean() > 0
    assert got.mean_difference == pytest.approx(np.abs(other - logits).mean(), rel=1e-4)
    assert got.largest_difference == pytest.approx(np.abs(other - logits).max(), rel=1e-4)
    nll = -q[np.arange(64), IDS[1:65]].mean()
    assert got.score.nll_per_token == pytest.approx(nll, rel=1e-5) and got.score.tokens == 64
    assert score.nll == pytest.approx(score_ids(MODEL, params, IDS[:65], 16).nll, rel=1e-6)
    assert made["same"].mean_kl == made["same"].flip_rate == made["same"].largest_difference == 0


def test_rounded_inputs_are_an_int8_product_of_codes():
    w, x = (
        quantize_array(jax.random.normal(jax.random.key(0), (64, 8)), "int8", inputs=1),
        3 * jnp.sin(jnp.arange(320.0)),
    )
    x = x.reshape(5, 64)
    scale = np.abs(np.asarray(x)).max(1, keepdims=True) / 127
    product = np.rint(np.asarray(x) / scale).astype(np.int64) @ np.asarray(w.codes[0], np.int64)
    # Integers to the last bit, times two scales: a float32 sum of 64.
    got = RoundedInputs(w).einsum("MI,IO->MO", x)
    np.testing.assert_allclose(
        got, product * scale * np.asarray(w.scale[0], np.float64), rtol=1e-5, atol=1e-5
    )
    assert float(jnp.abs(got - w.einsum("MI,IO->MO", x)).max()) > 1e-3


def test_merging_drifts_by_the_rounding_of_float32_and_no_more(params):
    adapters = initialize(
        jax.random.key(1), lora_specs(MODEL.specs(), LoraConfig(rank=4, alpha=8.0)), jnp.float32
    )
    adapters = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), adapters
    )
    adapted = attach(params, adapters)
    _, made = compare(MODEL, adapted, {"merged": merge(adapted), "without": params}, IDS, 16)
    assert 0 < made["merged"].mean_difference <= made["merged"].largest_difference < 1e-3
    assert made["without"].mean_difference > 0.1


def test_bits_are_those_of_codes_and_scales(params):
    quantized = quantize(params, MODEL.specs(), [(LINEAR, "int4"), (".*", None)], 16)
    size, plain = size_of(quantized, params), size_of(params, params)
    linear = sum(w.size for part in ("attention", "mlp") for w in params["layers"][part].values())
    total = sum(w.size for w in jax.tree.leaves(params))
    assert (plain.linear, plain.whole) == (32, 32)
    assert size.linear == 4 + 32 / 16  # a float32 scale for 16 codes
    assert size.whole == pytest.approx((6 * linear + 32 * (total - linear)) / total)


def test_what_cannot_be_compared_is_one_line(params):
    with pytest.raises(ValueError, match="10 tokens do not fill a window of 16"):
        compare(MODEL, params, {}, IDS[:10], 16)
    with pytest.raises(ValueError, match="the model is an encoder"):
        compare(Model(FAMILIES["bert_base"]), params, {}, IDS, 16)
