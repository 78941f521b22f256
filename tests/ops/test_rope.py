"""Rotary positions: what a rotation keeps, and what scaling does to each frequency."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.ops.norm import rms_norm
from research.ops.rope import frequencies, rotate, rotation
from research.ops.rope_scaling import RopeScaling

H = 16


def test_scores_depend_on_the_distance_alone():
    q, k = (jax.random.normal(jax.random.key(seed), (1, 1, 1, H)) for seed in (0, 1))
    rates = frequencies(H, 10000.0)

    def score(query_at, key_at):
        turned = [
            rotate(x, *rotation(np.array([[at]], np.int32), rates))
            for x, at in ((q, query_at), (k, key_at))
        ]
        return float(np.sum(turned[0] * turned[1]))

    # Angles of up to 107 radians, of which float32 keeps 1e-5.
    np.testing.assert_allclose(score(107, 100), score(7, 0), atol=1e-4)
    assert abs(score(7, 0) - score(8, 0)) > 1e-3


def test_linear_scaling_divides_positions():
    plain, scaled = (frequencies(H, 1e4, s) for s in (RopeScaling(), RopeScaling(4, kind="linear")))
    np.testing.assert_array_equal(4 * scaled, plain)  # a power of two rounds nothing


@pytest.mark.parametrize("factor", [2.0, 8.0])
def test_llama_scaling_stretches_slow_frequencies_and_leaves_fast_ones(factor):
    scaling = RopeScaling(factor, low_factor=1.0, high_factor=4.0, original_length=64)
    plain, scaled = frequencies(64, 1e4), frequencies(64, 1e4, scaling)
    wavelengths = 2 * np.pi / plain
    fast, slow = wavelengths < 64 / 4, wavelengths > 64 / 1
    assert fast.any() and slow.any() and not (fast | slow).all()
    np.testing.assert_allclose(scaled[fast], plain[fast], rtol=1e-12)
    np.testing.assert_allclose(scaled[slow], plain[slow] / factor, rtol=1e-12)
    assert (scaled <= plain).all() and (np.diff(scaled) < 0).all()


def test_a_norm_with_an_offset_scales_by_it_and_the_weight():
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    w = jax.random.normal(jax.random.key(1), (8,))
    np.testing.assert_array_equal(rms_norm(x, w, 1e-6, 1.0), rms_norm(x, 1 + w, 1e-6))


FACTORS = {"short_factors": [1.0 + i / 10 for i in range(8)], "long_factors": [2.0] * 8}
YARN = {"factor": 4.0, "kind": "yarn"}
# (scaling of 8 pairs with the base 10,000, length of the text): the first, fifth and eighth pair,
# and the factor of cosines and sines, by transformers 5.24.
BY_TRANSFORMERS = {
    "dynamic_short": (dict(factor=4.0, kind="dynamic", original_length=128), 64),
    "dynamic_long": (dict(factor=4.0, kind="dynamic", original_length=128), 1000),
    "yarn": (dict(**YARN, original_length=32), 8),
    "yarn_wide": (
        dict(**YARN, original_length=1024, truncate=False, beta_fast=16.0, beta_slow=2.0),
        8,
    ),
    "longrope_short": (dict(factor=4.0, kind="longrope", original_length=32, **FACTORS), 32),
    "longrope_long": (dict(factor=4.0, kind="longrope", original_length=32, **FACTORS), 33),
}
WANTED = {
    "dynamic_short": [1, 0.00999999978, 0.000316227786, 1],
    "dynamic_long": [1, 0.00148199464, 1.11939034e-05, 1],
    "yarn": [1, 0.00249999994, 7.90569466e-05, 1.13862944],
    "yarn_wide": [1, 0.00249999994, 7.90569466e-05, 1.13862944],
    "longrope_short": [1, 0.00714285718, 0.000186016332, 1.18321596],
    "longrope_long": [0.5, 0.00499999989, 0.000158113893, 1.18321596],
}


@pytest.mark.parametrize("name", BY_TRANSFORMERS)
def test_scalings_are_those_of_transformers(name):
    fields, length = BY_TRANSFORMERS[name]
    scaling = RopeScaling(**fields)
    lengths = jnp.array([length]) if scaling.by_length else None
    freq = np.asarray(frequencies(H, 1e4, scaling, lengths)).reshape(-1)
    got = [*freq[[0, 4, 7]], scaling.multiplier]
    np.testing.assert_allclose(got, WANTED[name], rtol=1e-6)  # of float32


def test_a_part_of_a_head_turns_and_the_rest_stays():
    x = jax.random.normal(jax.random.key(0), (1, 1, 1, H))
    turn = rotation(np.array([[3]], np.int32), frequencies(6, 1e4))
    turned = rotate(x, *turn)
    np.testing.assert_array_equal(turned[..., 6:], x[..., 6:])
    np.testing.assert_array_equal(turned[..., :6], rotate(x[..., :6], *turn))
    assert not np.allclose(turned[..., :6], x[..., :6])
