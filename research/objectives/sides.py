"""The two sides of each pair in a row: segments 1, 3, ... and 2, 4, ... of a packed window."""

import jax
import jax.numpy as jnp


def side_sums(
    x_BT: jax.Array, batch: dict[str, jax.Array], pairs: int
) -> tuple[jax.Array, jax.Array]:
    """(sums of `x` over the tokens of weight 1 of the first sides, of the second sides), each
    [B, P] for rows of at most P `pairs`."""
    numbers_11S = jnp.arange(1, 2 * pairs + 1)[None, None, :]
    counted_BT1 = (batch["weights"] > 0)[:, :, None]
    inside_BTS = (batch["segments"][:, :, None] == numbers_11S) & counted_BT1
    # Masked and not multiplied: what stands at other tokens may be infinite.
    sums_BS = jnp.sum(jnp.where(inside_BTS, x_BT[:, :, None], 0.0), axis=1)
    return sums_BS[:, 0::2], sums_BS[:, 1::2]
