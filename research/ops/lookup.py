"""Table look-up by codes, and the reciprocal of quantization scales."""

import jax
import jax.numpy as jnp
import numpy as np


def look_up(table: np.ndarray, codes: jax.Array) -> jax.Array:
    """`table[codes]` for integers of any shape, sharded as the codes are; codes beyond the table
    read its last entry."""
    at = jnp.asarray(table).at[codes]
    if jax.sharding.get_abstract_mesh().empty:
        return at.get(mode="clip")
    return at.get(mode="clip", out_sharding=jax.typeof(codes).sharding)


def reciprocal(x: jax.Array) -> jax.Array:
    """1 / x elementwise, and 0 where x is 0: the scale of a group whose values are all zero."""
    # The inner `where` keeps 1 / 0 out of the unused branch, whose gradient would be NaN.
    return jnp.where(x == 0, 0, 1 / jnp.where(x == 0, 1, x))
