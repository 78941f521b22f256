"""LLM.int8 against bitsandbytes' own result, and as a leaf in a model."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.model import Model, forward
from research.models.spec import initialize
from research.weights.dynamic import DynamicQuantized
from research.weights.llm_int8 import LlmInt8, llm_int8
from research.weights.quantized import Quantized, quantize_array
from research.weights.rules import quantize
from tests.families import FAMILIES, random_batch

GOLDEN = np.load(Path(__file__).parent / "golden_peft_bitsandbytes.npz")
MATRICES = r"layers/.*/(query|key|value|out|up|gate|down)"


def golden_weight():
    scale = jnp.asarray(GOLDEN["l8/SCB"] / np.float32(127))
    return Quantized(
        jnp.asarray(GOLDEN["l8/CB"].T)[None], scale[None, None], None, "int8", (256,), 1
    )


def error(leaf):
    """Of the golden linear layer, its bias in float16 as the layer had it."""
    y = leaf.einsum("MI,IO->MO", jnp.asarray(GOLDEN["l8/x"], jnp.float16))
    return np.abs(
        np.asarray(y + jnp.asarray(GOLDEN["l8/b"], jnp.float16)[None], np.float32) - GOLDEN["l8/y"]
    )


def test_it_is_bitsandbytes_within_a_unit_of_float16():
    # Values reach 3.29, where the unit is 2^-9; the layer adds its bias before the outliers, we
    # after, and each rounds.
    off = error(LlmInt8(golden_weight()))
    assert off.max() <= 2**-9 and off.mean() < 2**-12
    # Neither without the outliers' own product, nor with another threshold.
    assert error(DynamicQuantized(golden_weight())).max() > 0.1
    assert error(LlmInt8(golden_weight(), threshold=100.0)).max() > 0.1


def test_without_outliers_it_is_the_int8_product_and_with_outliers_alone_the_weight_only_one():
    w = quantize_array(jax.random.normal(jax.random.key(0), (64, 32)), "int8", inputs=1)
    x = jax.random.uniform(jax.random.key(1), (2, 3, 64), minval=-5, maxval=5)
    np.testing.assert_array_equal(
        LlmInt8(w).einsum("BTD,DF->BTF", x), DynamicQuantized(w).einsum("BTD,DF->BTF", x)
    )
    large = jnp.sign(x) * 7 + x
    np.testing.assert_array_equal(
        LlmInt8(w).einsum("BTD,DF->BTF", large), w.einsum("BTD,DF->BTF", large)
    )


def test_outlier_features_lose_nothing_and_leave_the_others_their_scale():
    w = quantize_array(jax.random.normal(jax.random.key(0), (64, 32)), "int8", inputs=1)
    x = jax.random.normal(jax.random.key(1), (1, 8, 64)).at[:, 2, 5].set(60.0)
    want = w.einsum("BTD,DF->BTF", x)
    off = lambda leaf: float(jnp.abs(leaf.einsum("BTD,DF->BTF", x) - want)[0, 2].max())  # noqa: E731
    # The token's scale is a twentieth of what the outlier would make it.
    assert off(LlmInt8(w)) < 0.15 * off(DynamicQuantized(w))


@pytest.mark.parametrize("eqn", ["BTNH,NHD->BTD", "BTD,VD->BTV"])
def test_gradients_are_those_of_the_weight_only_product(eqn):
    sizes, inputs, of_x = (
        ((4, 16, 32), 2, (2, 3, 4, 16)) if "N" in eqn else ((48, 64), -1, (2, 3, 64))
    )
    w = quantize_array(jax.random.normal(jax.random.key(0), sizes), "int8", inputs=inputs)
    x = 4 * jax.random.normal(jax.random.key(1), of_x)
    y, pull = jax.vjp(lambda x: LlmInt8(w).einsum(eqn, x), x)
    assert float(jnp.abs(y - w.einsum(eqn, x)).max()) < 0.02 * float(
        jnp.abs(y).max()
    )  # steps of 1/127
    np.testing.assert_array_equal(pull(y)[0], jax.vjp(lambda x: w.einsum(eqn, x), x)[1](y)[0])
    kept = jax.jit(lambda x: jax.vjp(lambda x: LlmInt8(w).einsum(eqn, x), x)[1])(x)
    assert (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
        <= w.codes.size + 4 * w.scale.size
    )


def test_any_model_runs_with_it():
    model = Model(FAMILIES["llama2_7b"])
    params = initialize(jax.random.key(0), model.specs(), np.dtype("float32"))
    held = quantize(params, model.specs(), [(MATRICES, "int8"), (".*", None)])
    # Outliers as they come in larger models: a feature of the residual stream's norm is large.
    held["layers"]["attention_norm"]["scale"] = (
        held["layers"]["attention_norm"]["scale"].at[:, 3].set(30.0)
    )
    wrapped = llm_int8(held, [(MATRICES, True), (".*", False)])
    assert isinstance(wrapped["layers"]["attention"]["query"], LlmInt8)
    batch = random_batch(2, 16)
    base = forward(model, held, batch)
    error = float(jnp.linalg.norm(forward(model, wrapped, batch) - base) / jnp.linalg.norm(base))
    assert 0 < error < 0.02  # 1/127 of activations in 14 products, most of which cancels


def test_other_formats_are_refused():
    model = Model(FAMILIES["llama2_7b"])
    params = initialize(jax.random.key(0), model.specs(), np.dtype("float32"))
    held = quantize(params, model.specs(), [(MATRICES, "fp8_e4m3"), (".*", None)])
    with pytest.raises(ValueError, match="LLM.int8 is of int8 weights and not of fp8_e4m3"):
        llm_int8(held, [(MATRICES, True), (".*", False)])
