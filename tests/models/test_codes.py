"""Keys and values in few bits."""

import jax.numpy as jnp
import numpy as np
import pytest

from research.models.codes import rounded
from research.models.rounded import make_rounded


@pytest.mark.parametrize("axis", [-3, -1])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_number_is_within_a_step_of_what_its_code_stands_for(bits, axis):
    x = np.random.default_rng(0).normal(size=(3, 8, 2, 6)).astype(np.float32)
    x[..., 1] += 100  # a channel that is far larger than the others, as of keys
    codes = rounded(jnp.array(x), axis, bits)
    # Half a step of rounding, and what bfloat16 makes of the step, which adds up over all steps.
    reach = x.max(axis=axis, keepdims=True) - np.float32(codes.low)
    step = reach / (2**bits - 1)
    assert np.all(np.abs(codes.dense() - x) <= 0.5 * step + 2**-8 * reach + 1e-5)
    assert codes.codes.nbytes == x.size * bits // 8


def test_numbers_that_are_all_alike_are_kept():
    x = jnp.full((4, 2, 4), 3.0)
    np.testing.assert_array_equal(rounded(x, -3, 4).dense(), x)


@pytest.mark.parametrize("bits, size", [(2, 8), (4, 7)])
def test_what_has_no_codes_is_refused(bits, size):
    with pytest.raises(ValueError, match="choose 8, or 4"):
        make_rounded(1, 4, 4, 2, size, jnp.float32, slots=1, bits=bits)
