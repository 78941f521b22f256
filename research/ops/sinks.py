"""Softmax with a sink: a learned score a head beside those of the keys. Its share of the
probabilities multiplies nothing, so a head may look at nothing (gpt-oss, arXiv:2508.10925; the idea
is that of arXiv:2309.17453).

Letters: B batch, T query time, S key time, N query heads, K key heads, G = N / K.
"""

import jax
import jax.numpy as jnp

from research.parallel.placement import split_axis


def softmax_beside(
    scores_BKGTS: jax.Array, sinks_N: jax.Array | None
) -> tuple[jax.Array, jax.Array | float]:
    """(probabilities of the keys [B, K, G, T, S], those of the sinks [B, K, G, T, 1]), which add up
    to 1; without sinks the plain softmax and 0.0."""
    if sinks_N is None:
        return jax.nn.softmax(scores_BKGTS, axis=-1), 0.0
    K = scores_BKGTS.shape[1]
    sinks_KG = split_axis(sinks_N.astype(scores_BKGTS.dtype), 0, K)
    return _softmax(scores_BKGTS, sinks_KG[None, :, :, None, None])


# With a rule of its own, so that of the arrays of size [T, S] only the probabilities are kept, as
# for the plain softmax; a score beside the keys' in one array would be a copy of all of them.
@jax.custom_jvp
def _softmax(scores_BKGTS: jax.Array, sinks_1KG11: jax.Array) -> tuple[jax.Array, jax.Array]:
    largest_BKGT1 = jnp.maximum(jnp.max(scores_BKGTS, axis=-1, keepdims=True), sinks_1KG11)
    keys_BKGTS, sinks_BKGT1 = (jnp.exp(x - largest_BKGT1) for x in (scores_BKGTS, sinks_1KG11))
    total_BKGT1 = jnp.sum(keys_BKGTS, axis=-1, keepdims=True) + sinks_BKGT1
    return keys_BKGTS / total_BKGT1, sinks_BKGT1 / total_BKGT1


@_softmax.defjvp
def _softmax_slope(primals, tangents):
    probs_BKGTS, sunk_BKGT1 = _softmax(*primals)
    dscores_BKGTS, dsinks_1KG11 = tangents
    # dp = p (ds - the mean of all ds under p), in which the sink counts as a key does.
    mean_BKGT1 = jnp.sum(probs_BKGTS * dscores_BKGTS, axis=-1, keepdims=True)
    mean_BKGT1 += sunk_BKGT1 * dsinks_1KG11
    slopes = probs_BKGTS * (dscores_BKGTS - mean_BKGT1), sunk_BKGT1 * (dsinks_1KG11 - mean_BKGT1)
    return (probs_BKGTS, sunk_BKGT1), slopes
