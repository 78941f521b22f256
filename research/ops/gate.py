"""Which experts a token visits, and with what weights.

Letters: B batch, T time, E experts, G groups of experts, k experts of a token.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from research.ops.route import top_k
from research.parallel.placement import split_axis
from research.scopes import scope


@dataclass(frozen=True)
class Gate:
    """How a token's experts follow from the logits of its router.

    k           experts of a token
    normalized  their mixing weights sum to `scale`
    scores      "softmax": shares of a softmax over all experts; "sigmoid" (arXiv:2412.19437,
                equations 13 to 16); or "sparsemixer", see `_by_sparsemixer`
    groups      groups of adjacent experts, and `visited`, those that a token's experts lie in
    scale       multiplies the mixing weights
    jitter      of "sparsemixer": half the distance at which an expert is out of reach
    """

    k: int
    normalized: bool = True
    scores: str = "softmax"
    groups: int = 1
    visited: int = 1
    scale: float = 1.0
    jitter: float = 0.01

    @scope("routing")
    def choose(
        self, logits_BTE: jax.Array, bias_E: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Mixing weights float32 [B, T, k] and the ids of their experts int32 [B, T, k]. The bias
        is added to sigmoids where they choose experts, and to no weight, so that no gradient
        reaches it."""
        if self.scores == "sigmoid":
            weights_BTk, ids_BTk = self._by_sigmoids(logits_BTE, bias_E)
        elif self.scores == "sparsemixer":
            weights_BTk, ids_BTk = self._by_sparsemixer(logits_BTE)
        else:
            total_BT1 = None
            if self.groups > 1:  # the shares are of all experts, of hidden groups too
                total_BT1 = jax.nn.logsumexp(logits_BTE, axis=-1, keepdims=True)
            open_BTE = self._open(logits_BTE, best=1)
            weights_BTk, ids_BTk = top_k(open_BTE, self.k, self.normalized, total_BT1)
        return (weights_BTk if self.scale == 1.0 else weights_BTk * self.scale), ids_BTk

    def _by_sigmoids(
        self, logits_BTE: jax.Array, bias_E: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        scores_BTE = jax.nn.sigmoid(logits_BTE)
        chosen_BTE = scores_BTE if bias_E is None else scores_BTE + bias_E[None, None]
        _, ids_BTk = lax.top_k(self._open(chosen_BTE, best=2), self.k)
        # A masked sum and no gather, whose rows a mesh may split.
        taken_BTkE = jax.nn.one_hot(ids_BTk, scores_BTE.shape[-1], dtype=bool)
        weights_BTk = jnp.sum(jnp.where(taken_BTkE, scores_BTE[:, :, None], 0.0), axis=-1)
        if not self.normalized:
            return weights_BTk, ids_BTk
        # The released code's guard against a sum of zero.
        return weights_BTk / (jnp.sum(weights_BTk, axis=-1, keepdims=True) + 1e-20), ids_BTk

    def _by_sparsemixer(self, logits_BTE: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The k best experts, one after the other. The weight of each is its share of a softmax
        over those that are left and within reach: less than 2 `jitter` below it, as a part of the
        larger size of the two logits. The weights do not sum to 1.

        This is how Phi-3.5-MoE computes (arXiv:2409.12136, its released code). Its training also
        samples experts within reach and estimates the gradient of that choice, which is not done
        here: fine-tuning visits the experts that the model will visit.
        """
        left_BTE, weights, ids = logits_BTE, [], []
        for _ in range(self.k):
            best_BT1, id_BT1 = lax.top_k(left_BTE, 1)
            size_BTE = jnp.maximum(jnp.abs(logits_BTE), best_BT1)
            # 0 / 0, of a best logit of 0, is within reach.
            far_BTE = (best_BT1 - logits_BTE) / size_BTE > 2 * self.jitter
            near_BTE = jnp.where(far_BTE, -jnp.inf, left_BTE)
            total_BT1 = jax.nn.logsumexp(near_BTE, axis=-1, keepdims=True)
            weights.append(jnp.exp(best_BT1 - total_BT1))
            ids.append(id_BT1)
            taken_BTE = jax.nn.one_hot(id_BT1[:, :, 0], logits_BTE.shape[-1], dtype=bool)
            left_BTE = jnp.where(taken_BTE, -jnp.inf, left_BTE)
        return jnp.concatenate(weights, axis=-1), jnp.concatenate(ids, axis=-1)

    def _open(self, scores_BTE: jax.Array, best: int) -> jax.Array:
        """The scores, and -inf for experts outside the groups that a token visits: those in which
        the sum of the `best` highest scores is the largest."""
        if self.groups == 1:
            return scores_BTE
        scores_BTGe = split_axis(scores_BTE, 2, self.groups)
        highest_BTG = jnp.sum(lax.top_k(scores_BTGe, best)[0], axis=-1)
        _, groups_BTg = lax.top_k(highest_BTG, self.visited)
        open_BTG = jnp.any(jax.nn.one_hot(groups_BTg, self.groups, dtype=bool), axis=2)
        return jnp.where(open_BTG[..., None], scores_BTGe, -jnp.inf).reshape(scores_BTE.shape)
