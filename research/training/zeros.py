"""Zeros that training keeps: a pruned model stays as sparse as it was."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from research import tree
from research.weights.matrices import LINEAR


def keep_zeros(params: tree.Tree) -> optax.GradientTransformation:
    """The last link of an optimizer: no update where a matrix of the layers is exactly 0.

    A weight that is 0 gets no update and is 0 at the next step too, so the zeros of the first step
    are those of the last one, under any optimizer and decay, without a mask beside the parameters.
    A weight that an update makes exactly 0, which float arithmetic hardly ever does, stays there.
    ValueError where no matrix of the layers is among `params`, a tree with their paths.
    """
    chosen = {path: bool(re.fullmatch(LINEAR, path)) for path in tree.paths(params)}
    if not any(chosen.values()):
        raise ValueError(
            "optimizer.keep_zeros: no matrix of the layers is trained itself, so none of its zeros "
            "can move; set config.tune.method=full, or leave it out"
        )

    def _update(updates: tree.Tree, state: Any, params: tree.Tree | None = None):
        def _kept(path, update, w):
            if not chosen[tree.path_name(path)]:
                return update
            return jnp.where(w == 0, jnp.zeros_like(update), update)

        return jax.tree.map_with_path(_kept, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), _update)
