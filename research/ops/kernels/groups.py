"""Rows in groups, and those behind the last group, which belong to none."""

import jax
import jax.numpy as jnp


def of_groups(y_MO: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """`y` with zeros in the rows without a group."""
    # `where` and not a product with 0, since such rows may hold NaN.
    return jnp.where((jnp.arange(y_MO.shape[0]) < jnp.sum(sizes_E))[:, None], y_MO, 0)
