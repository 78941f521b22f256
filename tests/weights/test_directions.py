"""Directions projected out of a weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.weights.directions import (
    main_directions,
    pair_differences,
    random_directions,
    without_directions,
)

TABLE_VD = jax.random.normal(jax.random.key(0), (12, 8))


def test_every_row_is_orthogonal_to_every_direction_and_no_more_is_lost():
    directions_KD = random_directions(1, 2, 8)
    once_VD = without_directions(TABLE_VD, directions_KD)
    along_VK = once_VD @ directions_KD.T
    # Float32 products of eight numbers.
    assert float(jnp.abs(along_VK).max()) < 1e-5
    np.testing.assert_allclose(without_directions(once_VD, directions_KD), once_VD, atol=1e-5)
    # What is lost lies in the span: its rank is the number of directions.
    lost_VD = np.asarray(TABLE_VD - once_VD)
    assert np.linalg.matrix_rank(lost_VD, tol=1e-4) == 2
    # A direction that repeats another spans no more.
    twice_KD = jnp.concatenate([directions_KD, 3 * directions_KD])
    np.testing.assert_allclose(without_directions(TABLE_VD, twice_KD), once_VD, atol=1e-5)


def test_the_direction_of_planted_pairs_is_found_and_its_words_become_alike():
    planted_D = jnp.zeros(8).at[3].set(5.0)
    table_VD = TABLE_VD.at[6:].set(TABLE_VD[:6] + planted_D[None])
    pairs = [([row + 6], [row]) for row in range(6)]
    directions_KD = main_directions(pair_differences(table_VD, pairs), 1)
    np.testing.assert_allclose(np.abs(directions_KD[0]), np.eye(8)[3], atol=1e-5)
    erased_VD = without_directions(table_VD, directions_KD)
    np.testing.assert_allclose(erased_VD[6:], erased_VD[:6], atol=1e-5)
    # A direction by lot, the null, leaves them apart.
    null_VD = without_directions(table_VD, random_directions(0, 1, 8))
    assert float(jnp.linalg.norm(null_VD[6] - null_VD[0])) > 3


@pytest.mark.parametrize("directions", [np.ones((1, 7)), np.eye(8)])
def test_directions_that_do_not_fit_are_refused(directions):
    with pytest.raises(ValueError, match="cannot be projected out of rows of width 8"):
        without_directions(TABLE_VD, jnp.asarray(directions))
