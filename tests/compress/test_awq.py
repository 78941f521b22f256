"""Activation-aware scales: what is observed, what they gain where inputs differ in size, and that
they cost nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.compress import awq
from research.compress.observe import Inputs, Observed, inputs_of, output_error
from research.weights.quantized import quantize_array


def inputs(size, large=(), seed=0):
    """x [512, I] with some inputs 30 times as large as the rest."""
    x = np.random.default_rng(seed).normal(size=(512, size))
    x[:, list(large)] *= 30
    return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("format", ["int4", "uint4", "nf4"])
def test_large_inputs_make_a_smaller_error_than_to_nearest(format):
    x, w = inputs(128, large=(3, 77)), jax.random.normal(jax.random.key(1), (128, 32))
    seen = inputs_of("MI,IO->MO", x)
    factors = awq.search(seen, [w], format, 32)
    scaled = (
        quantize_array(w * factors[:, None], format, inputs=1, group=32).dense() / factors[:, None]
    )
    nearest = quantize_array(w, format, inputs=1, group=32).dense()
    ours, theirs = (float(output_error(seen.gram_II, error - w)) for error in (scaled, nearest))
    assert ours < 0.5 * theirs  # two inputs in 128 make nine tenths of the error
    assert factors[3] > 2 * jnp.median(factors)


def test_it_is_never_worse_than_to_nearest_on_what_it_saw():
    for seed in range(4):
        seen, w = (
            inputs_of("MI,IO->MO", inputs(64, seed=seed)),
            jax.random.normal(jax.random.key(seed), (64, 16)),
        )
        factors = awq.search(seen, [w], "int4", 32)
        scaled = (
            quantize_array(w * factors[:, None], "int4", inputs=1, group=32).dense()
            / factors[:, None]
        )
        nearest = quantize_array(w, "int4", inputs=1, group=32).dense()
        ours, theirs = (float(output_error(seen.gram_II, made - w)) for made in (scaled, nearest))
        assert ours <= theirs * (
            1 + 1e-5
        )  # the exponent 0 is among those tried, up to the order of float32 sums


def test_weights_that_share_inputs_share_factors():
    seen = inputs_of("MI,IO->MO", inputs(64, large=(5,)))
    first, second = (jax.random.normal(jax.random.key(n), (64, 16)) for n in (1, 2))
    both = awq.search(seen, [first, second], "int4", 32)
    assert both.shape == (64,)
    np.testing.assert_array_equal(both, awq.search(seen, [second, first], "int4", 32))


@pytest.mark.parametrize(
    ("eqn", "of_x", "of_w"),
    [
        ("BTD,DNH->BTNH", (2, 5, 12), (12, 3, 4)),
        ("BTNH,NHD->BTD", (2, 5, 3, 4), (3, 4, 12)),
        ("MI,IO->MO", (10, 12), (12, 7)),
    ],
)
def test_a_weight_that_is_watched_notes_its_inputs_and_computes_the_same(eqn, of_x, of_w):
    x, w = jax.random.normal(jax.random.key(0), of_x), jax.random.normal(jax.random.key(1), of_w)
    watched = Observed(w)
    np.testing.assert_array_equal(watched.einsum(eqn, x), jnp.einsum(eqn, x, w))
    [seen] = watched.seen
    rows = np.asarray(x, np.float64).reshape(10, 12)
    assert seen.count == 10 and watched.shape == of_w
    # Float32 sums of ten.
    np.testing.assert_allclose(seen.mean_I, np.abs(rows).mean(0), rtol=1e-5)
    np.testing.assert_allclose(seen.largest_I, np.abs(rows).max(0), rtol=1e-6)
    np.testing.assert_allclose(seen.gram_II, rows.T @ rows, atol=1e-4)


def test_what_two_batches_note_is_what_one_would():
    x = inputs(16)
    together, parts = (
        inputs_of("MI,IO->MO", x),
        [inputs_of("MI,IO->MO", part) for part in (x[:100], x[100:])],
    )
    added = parts[0] + parts[1]
    assert isinstance(added, Inputs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), added, together
    )
