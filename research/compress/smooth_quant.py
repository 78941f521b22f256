"""SmoothQuant (arXiv:2211.10438): outliers of activations are moved into the weights, whose
quantization suffers less from them.

    x W = (x / s) (s W),    s_j = max |x_j|^alpha / max |W_j|^(1 - alpha)        (equation 4)

The division goes into what makes x: the scale of a norm, or the columns of the matrix before it.
Both are exact.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

_LEAST = 1e-5  # a factor below it would blow up what it divides


def smoothing(
    largest_I: jax.Array, weights_IO: Sequence[jax.Array], alpha: float = 0.5
) -> jax.Array:
    """The factor s of each input, float32 [I], of the weights that share these inputs; `largest_I`
    is max |x|."""
    # Weights that share their inputs share the factors, so the largest of all of them counts.
    largest_w_I = jnp.max(
        jnp.stack([jnp.max(jnp.abs(w_IO), axis=1) for w_IO in weights_IO]), axis=0
    )
    # alpha = 0.5 shares the difficulty evenly between activations and weights (section 4).
    of_inputs_I = jnp.maximum(largest_I, _LEAST) ** alpha
    of_weights_I = jnp.maximum(largest_w_I, _LEAST) ** (1 - alpha)
    return jnp.maximum(of_inputs_I / of_weights_I, _LEAST)


def as_matrix(w: jax.Array, inputs: int) -> jax.Array:
    """A weight whose first `inputs` axes are summed over, as float32 [I, O]."""
    return w.reshape(math.prod(w.shape[:inputs]), -1).astype(jnp.float32)


def fold(
    layer: Mapping[str, jax.Array],
    before: str,
    after: Mapping[str, int],
    factors_I: jax.Array,
    norm_offset: float = 0.0,
) -> dict[str, jax.Array]:
    """A layer that computes the same with the inputs of some weights divided by factors.

    `after` are those weights (path: number of input axes), which are multiplied by the factors.
    `before`, the path of the norm or matrix whose results they take, is divided by them. A norm
    that scales by `norm_offset` + w keeps its w.
    """
    folded = dict(layer)
    # A matrix is a path of its own, a norm is a folder of scale and bias.
    names = [before] if before in layer else [f"{before}/scale", f"{before}/bias"]
    for name in (*names, f"{before}_bias"):
        if name in layer:
            w = layer[name]
            # What is divided is the whole scale; what is kept of it is w.
            offset = norm_offset if name == f"{before}/scale" else 0.0
            flat = w.reshape(-1, factors_I.size).astype(jnp.float32) + offset
            folded[name] = (flat / factors_I[None] - offset).reshape(w.shape).astype(w.dtype)
    for path, inputs in after.items():
        w = layer[path]
        folded[path] = (as_matrix(w, inputs) * factors_I[:, None]).reshape(w.shape).astype(w.dtype)
    return folded
