"""The experts' low-rank factors, side by side as on a GPU, against grouped products of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.ops.grouped import grouped
from research.weights.grouped_factors import update_by_all

M, E, I, R, O = 24, 3, 16, 4, 8
SIZES = [[8, 8, 8], [3, 0, 21], [5, 0, 6], [0, 0, 0]]


def random(*shape):
    return jax.random.normal(jax.random.key(sum(shape)), shape)


@pytest.mark.parametrize("sizes", SIZES)
def test_factors_of_all_experts_update_as_grouped_ones(sizes):
    sizes, n = jnp.array(sizes), sum(sizes)
    # NaN where a row has no group, as kernels may leave there.
    x, dy = (random(M, width).at[n:].set(jnp.nan) for width in (I, O))
    a, b, scale = random(E, I, R), random(E, R, O), jnp.arange(1.0, E + 1)

    def by_group(x, a, b):
        return grouped(grouped(x, a, sizes), b * scale[:, None, None], sizes)

    def by_all(x, a, b):
        return update_by_all(x, a, b, scale, sizes)

    (want, to_want), (got, to_got) = (jax.vjp(f, x, a, b) for f in (by_group, by_all))
    for one, other in zip((got[:n], *to_got(dy)), (want[:n], *to_want(dy))):
        # float32 sums of up to 24 products of order 10, in another order
        np.testing.assert_allclose(one, other, atol=2e-4)
