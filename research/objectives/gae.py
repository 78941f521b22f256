"""Generalized advantage estimation (arXiv:1506.02438): how much better a text went from a token on
than a value, what was expected there, had said.

Letters: B rows, T tokens.
"""

import jax
import jax.numpy as jnp

from research.parallel.placement import gather_axis, partition_spec, reshard_to


def advantages_of_values(
    values_BT: jax.Array,
    rewards_BT: jax.Array,
    weights_BT: jax.Array,
    segments_BT: jax.Array,
    discount: float,
    decay: float,
) -> jax.Array:
    """The advantage of each written token, [B, T], 0 elsewhere; equation 16 of the paper:

        A_t = sum over k >= 0 of (discount decay)^k d_(t+k),
        d_t = r_t + discount V_(t+1) - V_t,

    over the written tokens of a text, those with a weight, in their order; V is 0 after the last
    and r is 0 before it. `values_BT` are expected rewards before each token, `rewards_BT` that of
    the token's text, the same at all of them, `segments_BT` the texts of a row, one after the
    other. With a decay and a discount of 1 an advantage is the reward less the value.
    """

    def step(after, token):
        """`after` is of the written token behind this one: its segment, value and advantage."""
        segment_B, value_B, advantage_B = after
        own_segment_B, own_value_B, reward_B, written_B = token
        last_B = segment_B != own_segment_B
        surprise_B = jnp.where(last_B, reward_B, discount * value_B) - own_value_B
        own_B = surprise_B + discount * decay * jnp.where(last_B, 0.0, advantage_B)
        own = (own_segment_B, own_value_B, own_B)
        after = tuple(jnp.where(written_B, new, old) for new, old in zip(own, after))
        return after, jnp.where(written_B, own_B, 0.0)

    # A loop over tokens, so that every device has all of its rows' tokens: a few numbers for each.
    tokens_BT = (segments_BT, values_BT, rewards_BT, weights_BT > 0)
    tokens_TB = tuple(jnp.swapaxes(gather_axis(x_BT, axis=1), 0, 1) for x_BT in tokens_BT)
    nothing_B = jnp.zeros_like(tokens_TB[1][0])
    none = (jnp.full_like(tokens_TB[0][0], -1), nothing_B, nothing_B)
    _, advantages_TB = jax.lax.scan(step, none, tokens_TB, reverse=True)
    return reshard_to(jnp.swapaxes(advantages_TB, 0, 1), partition_spec(values_BT))
