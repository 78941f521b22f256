"""NEFTune's noise on embeddings (arXiv:2310.05914)."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.embedding import noise
from research.models.model import Model
from research.models.spec import initialize
from research.parallel.mesh import make_mesh
from tests.families import FAMILIES, random_batch

SEGMENTS_BT = jnp.array([[1] * 4 + [2] * 12 + [0] * 4, [1] * 20])


def test_the_noise_of_a_text_has_the_size_of_its_own_length():
    D, alpha = 4000, 5.0
    drawn_BTD = noise(jnp.zeros((2, 20, D)), alpha, SEGMENTS_BT, jax.random.key(0))
    for row, tokens, length in ((0, slice(0, 4), 4), (0, slice(4, 16), 12), (1, slice(0, 20), 20)):
        part, most = np.asarray(drawn_BTD[row, tokens]), alpha / (length * D) ** 0.5
        assert 0.99 * most < np.abs(part).max() <= most
        # Uniform: a standard deviation of most / sqrt(3), to a hundredth over 16,000 draws.
        assert part.std() == pytest.approx(most / 3**0.5, rel=0.02)
    whole_BTD = noise(jnp.zeros((1, 9, D)), alpha, None, jax.random.key(0))
    assert np.abs(whole_BTD).max() == pytest.approx(alpha / (9 * D) ** 0.5, rel=0.01)


def test_noise_needs_a_key_and_zero_is_none():
    c = FAMILIES["llama2_7b"]
    plain, noisy = Model(c), Model(replace(c, embedding_noise=5.0))
    params = initialize(jax.random.key(0), plain.specs(), jnp.float32)
    batch, key = random_batch(2, 12), jax.random.key(1)
    states = [np.asarray(m.states(params, batch, k)) for m in (plain, noisy) for k in (None, key)]
    np.testing.assert_array_equal(states[0], states[1])  # none without noise
    np.testing.assert_array_equal(states[0], states[2])  # none in evaluation
    assert (states[3] != states[0]).mean() > 0.99


def test_a_mesh_that_splits_texts_draws_noise_of_the_same_size():
    x_BTD = jnp.zeros((2, 20, 400))
    alone = np.asarray(noise(x_BTD, 5.0, SEGMENTS_BT, jax.random.key(0)))
    mesh = make_mesh("data:2,context:4")
    with jax.set_mesh(mesh):
        P = jax.sharding.PartitionSpec
        x, segments = (
            jax.device_put(a, jax.NamedSharding(mesh, P("data", "context")))
            for a in (x_BTD, SEGMENTS_BT)
        )
        split = np.asarray(jax.jit(lambda x, s: noise(x, 5.0, s, jax.random.key(0)))(x, segments))
    np.testing.assert_allclose(split, alone, rtol=1e-6)
