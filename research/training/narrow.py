"""Parameters in 16 bits: what an optimizer can and cannot do with them.

float16 holds no number below 6e-8, so AdamW's eps of 1e-8 and the squares of small gradients are 0
in it, and an update is 0 / 0. There the optimizer works in float32, moments included, and only its
result is rounded. bfloat16 has float32's range, but 8 bits: an update of less
than |w| / 512 is lost on a number w, without a trace.
"""

import jax
import jax.numpy as jnp
import optax

from research import tree


def widen_float16(
    transform: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """`transform` with gradients, parameters and state in float32 where they would be float16.
    Updates stay float32: the learning rate times an update may be below float16's range, and
    `optax.apply_updates` rounds the sum."""

    def _update(updates, state, params=None, **more):
        return transform.update(_wide(updates), state, _wide(params), **more)

    # The state is float32 from the start, so its types do not change at the first update.
    return optax.GradientTransformationExtraArgs(lambda p: transform.init(_wide(p)), _update)


def _wide(values: tree.Tree) -> tree.Tree:
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.float16 else x, values)


def standing_still(dtype: jnp.dtype, learning_rate: float) -> list[str]:
    """A line if parameters of this type are too coarse for updates of about the learning rate, the
    size of Adam's; else []. It is said and not repaired: rounding at random would change every run
    of this kind, and published recipes keep float32 parameters.
    """
    # The mantissa's bits and the leading 1, which is not stored: 8 of bfloat16.
    bits = jnp.finfo(dtype).nmant + 1
    # With `bits` bits, half the distance to the next number is at least |w| / 2^(bits + 1).
    limit = learning_rate * 2 ** (bits + 1)
    # Weights are mostly below 1; a limit above it concerns next to none of them.
    if dtype == jnp.float32 or not 0 < limit < 1:
        return []
    name = jnp.dtype(dtype).name
    return [
        f"precision.param={name} keeps {bits} bits: at learning_rate={learning_rate:g} numbers "
        f"above {limit:.2g} do not move (a norm's scale of 1 moves in steps of "
        f"{float(jnp.finfo(dtype).eps):.2g}); set config.precision.param=float32"
    ]
