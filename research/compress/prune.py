"""Pruning of single matrices: a method is one row of `PRUNERS`.

    magnitude   |W|, of the whole matrix
    wanda       |W_ij| |x_j|, of each output's weights (arXiv:2306.11695, equation 1)
    ria         (|W_ij| / sum_j |W_ij| + |W_ij| / sum_i |W_ij|) |x_j|^(1/2), of the whole matrix
                (RIA, ICLR 2024, "Plug-and-Play", equations 2 and 3), without its permutation
    sparsegpt   what pruning costs after the others have compensated (`research.compress.gptq`)

|x_j| is the norm of an input over the calibration texts. The first three move no weight that stays.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from research.compress.gptq import gptq, sparse_gpt
from research.compress.masks import Among, Pruning, keep
from research.compress.observe import Inputs
from research.weights.quantized import Quantized, quantize_array

Pruned = jax.Array | Quantized


def prune_matrix(
    w: jax.Array,
    method: str,
    pruning: Pruning,
    *,
    inputs: int,
    seen: Inputs | None = None,
    group: int | None = None,
) -> Pruned:
    """A weight whose first `inputs` axes are summed over, pruned, and in `pruning.format` if there
    is one. `seen` are its inputs, which `magnitude` alone does without."""
    return PRUNERS[method](w, pruning, inputs, seen, group)


def _scored(score: Callable[[jax.Array, Inputs | None], jax.Array], among: Among) -> Callable:
    """A method that keeps the weights of the largest score as they are."""

    def _prune(w, pruning, inputs, seen, group) -> Pruned:
        w_IO = w.reshape(math.prod(w.shape[:inputs]), -1).astype(jnp.float32)
        kept = keep(score(w_IO, seen), pruning, among).reshape(w.shape)
        pruned = jnp.where(kept, w, jnp.zeros_like(w))
        if not pruning.format:
            return pruned
        return quantize_array(pruned, pruning.format, inputs=inputs, group=group)

    return _prune


def _wanda(w_IO: jax.Array, seen: Inputs) -> jax.Array:
    return jnp.abs(w_IO) * jnp.sqrt(jnp.diagonal(seen.gram_II))[:, None]


def _ria(w_IO: jax.Array, seen: Inputs) -> jax.Array:
    size_IO = jnp.abs(w_IO)
    # A row or column of zeros has only zeros to divide.
    of_output = size_IO / jnp.maximum(size_IO.sum(0, keepdims=True), jnp.finfo(jnp.float32).tiny)
    of_input = size_IO / jnp.maximum(size_IO.sum(1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    return (of_output + of_input) * jnp.diagonal(seen.gram_II)[:, None] ** 0.25


def _sparse_gpt(w, pruning, inputs, seen, group) -> Pruned:
    if not pruning.format:
        return sparse_gpt(w, seen.gram_II, pruning, inputs=inputs)
    settings = {"inputs": inputs, "group": group, "pruning": pruning}
    # With nothing to prune the order is free again, and this is GPTQ.
    free = pruning.removed == 0
    return gptq(w, seen.gram_II, pruning.format, by_activation=free, **settings)


PRUNERS: dict[str, Callable] = {
    "magnitude": _scored(lambda w_IO, seen: jnp.abs(w_IO), "matrix"),
    "wanda": _scored(_wanda, "output"),
    "ria": _scored(_ria, "matrix"),
    "sparsegpt": _sparse_gpt,
}
UNCALIBRATED = ("magnitude",)
