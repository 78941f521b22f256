"""The line about a quantized export: rounding that was asked for is not told as damage."""

import jax.numpy as jnp
import numpy as np

from research.compress.rounding import describe_rounding
from research.weights.quantized import quantize_array


def trees():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32))
    params = {"up": w, "norm": jnp.ones(4)}
    return params, {**params, "up": quantize_array(w, "int8", inputs=1)}


def test_a_line_says_the_size_of_what_was_asked_for():
    params, quantized = trees()
    line = describe_rounding(params, quantized, "int8")
    error = np.abs(np.asarray(quantized["up"].dense() - params["up"]))
    rms = float(np.sqrt(np.mean(error.astype(np.float64) ** 2)))
    want = (
        f"quantized as asked: int8, {rms:.3g} rms, largest {error.max():.3g} of 1 tensors; 1 kept"
    )
    assert line == want


def test_weights_that_a_method_rescales_are_counted_alone():
    params, quantized = trees()
    line = describe_rounding(params, quantized | {"norm": 2 * params["norm"]}, "int8 by awq")
    assert line == "quantized as asked: int8 by awq, 1 tensors; 1 rescaled; 0 kept"
