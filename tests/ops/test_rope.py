"""Rotary positions: what a rotation keeps, and what scaling does to each frequency."""

import jax
import numpy as np
import pytest

from research.ops.norm import rms_norm
from research.ops.rope import RopeScaling, frequencies, rotate, rotation

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
