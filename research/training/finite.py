"""Whether a state can be trained on: none of its numbers is NaN or infinite."""

import jax
import jax.numpy as jnp

from research import tree

# What a train step changes. Frozen weights are those of their source, whatever they hold.
TRAINED = ("trainable/", "optimizer/")


def nonfinite(state: tree.Tree) -> list[str]:
    """Paths of the trained arrays that hold a NaN or an infinity, in tree order; [] if all are
    finite.

    `state` is a tree of jax.Arrays as a checkpoint stores it, on whatever devices. Looked at are
    the parameters below "trainable" and the optimizer's state below "optimizer". Each array is
    reduced to one bool on its devices, all of them in one program.
    """
    # Integers (counts, 8-bit codes of moments) are always finite.
    arrays = {
        path: leaf
        for path, leaf in tree.paths(state).items()
        if path.startswith(TRAINED) and jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    # One transfer for all, instead of a wait for each array.
    good = jax.device_get(_all_finite(list(arrays.values())))
    return [path for path, is_finite in zip(arrays, good) if not is_finite]


def shown(paths: list[str]) -> str:
    """The paths (at least one) in a few words: the first, and the number of the others."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more}"


@jax.jit
def _all_finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.all(jnp.isfinite(leaf)) for leaf in leaves]
