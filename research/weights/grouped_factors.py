"""Low-rank factors of experts on a GPU, where a grouped product of few columns gains nothing.

Letters: M rows, E experts, I inputs, R rank, O outputs.
"""

import jax
import jax.numpy as jnp

from research.ops.kernels.groups import of_groups


def update_by_all(
    x_MI: jax.Array, a_EIR: jax.Array, b_ERO: jax.Array, scale_E: jax.Array, sizes_E: jax.Array
) -> jax.Array:
    """scale x a b for rows in groups of `sizes`, each with its expert's factors and scale: [M, O],
    zeros in rows after the last group, whose gradients are zero too.

    Two dense products with the factors of all experts side by side, of which each row keeps its own
    expert's part. XLA spells a grouped product out as just as many FLOPs and copies the rows once
    for each expert; the grouped kernel's tiles are wider than a rank.
    """
    dtype, ends_E = x_MI.dtype, jnp.cumsum(sizes_E)
    at_M1 = jnp.arange(x_MI.shape[0])[:, None]
    own_ME = (at_M1 >= (ends_E - sizes_E)[None]) & (at_M1 < ends_E[None])
    low_MER = jnp.einsum("MI,EIR->MER", of_groups(x_MI, sizes_E), a_EIR.astype(dtype))
    low_MER *= jnp.where(own_ME, scale_E[None], 0).astype(dtype)[:, :, None]
    # Also of the result, since the gradient of a row without a group may be NaN.
    return of_groups(jnp.einsum("MER,ERO->MO", low_MER, b_ERO.astype(dtype)), sizes_E)
