"""Cross-entropy over a vocabulary that may be split over devices, in float32 and in nats.

    loss = (1 - s) * nll + s * mean over V of -log p  (label smoothing, arXiv:1512.00567, section 7)
           + z_loss * log(Z)^2                        (arXiv:2204.02311, section 5)

`token_terms` is that formula with its gradient. `cross_entropy` takes logits; `plain_head` and
`frozen_head` take the states before a head and never have all logits.

Letters: B batch, T time, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from research.ops.elementwise import soft_cap_slope
from research.scopes import scope


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary: `words` is the number on this device. Under `shard_map`, `axis` is the mesh
    axis that splits the vocabulary over devices, None if it is not split."""

    words: int
    axis: str | None = None

    @property
    def size(self) -> int:
        """Words on all devices."""
        return self.words * (lax.axis_size(self.axis) if self.axis else 1)

    @property
    def first(self) -> jax.Array | int:
        """Index of this device's first word."""
        return lax.axis_index(self.axis) * self.words if self.axis else 0

    def sum(self, x: jax.Array) -> jax.Array:
        """Sum of every device's part."""
        return lax.psum(x, self.axis) if self.axis else x

    def max(self, x: jax.Array) -> jax.Array:
        """Maximum over every device's part."""
        return lax.pmax(x, self.axis) if self.axis else x


class TokenTerms(NamedTuple):
    """`loss` and `nll` of each token in nats, and `gradient(logits, words)`: the derivative of
    `loss` by the logits before their soft cap, in the shape of `logits`."""

    loss: jax.Array
    nll: jax.Array
    gradient: Callable[[jax.Array, jax.Array], jax.Array]


@scope("loss")
def token_terms(
    logits: jax.Array,
    targets: jax.Array,
    words: jax.Array,
    vocabulary: Vocabulary,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    axes: Sequence[int] = (-1,),
    log_z: jax.Array | None = None,
) -> TokenTerms:
    """Loss and negative log-likelihood of each token, float32 in the shape of `targets`.

    `logits` [..., V] are float32, after the model's soft cap. `words`, the id of each logit's word,
    broadcasts against them. For logits in blocks of words, [n, C, v], `axes` are the two word axes
    (0, 2). `log_z`, log of the sum of exp(logits), is computed if not given. The target's logit is
    a masked sum, since a gather would have to cross the shards of a split vocabulary.
    """

    def _total(x):
        return vocabulary.sum(jnp.sum(x, axis=axes))

    if log_z is None:
        # Its gradient is zero: the shift by the maximum cancels out.
        top = lax.stop_gradient(vocabulary.max(jnp.max(logits, axis=axes)))
        log_z = top + jnp.log(_total(jnp.exp(logits - _column(top, logits))))
    nll = log_z - _total(jnp.where(words == _column(targets, logits), logits, 0.0))
    # The second product stays where z_loss is 0: without it a CPU fuses the first with what
    # follows, and losses differ in the last bit from those of older runs.
    loss = (1 - label_smoothing) * nll + z_loss * log_z**2 if label_smoothing or z_loss else nll
    if label_smoothing:
        loss += label_smoothing * (log_z - _total(logits) / vocabulary.size)

    # d nll = p - [target], d log_z = p, d mean(-log p) = p - 1 / V, with p = exp(logit - log_z).
    @scope("loss")
    def _gradient(logits, words):
        log_z_1 = _column(log_z, logits)
        d = jnp.exp(logits - log_z_1) * (1 + 2 * z_loss * log_z_1)
        d -= label_smoothing / vocabulary.size
        d -= (1 - label_smoothing) * (words == _column(targets, logits))
        return d * soft_cap_slope(logits, softcap) if softcap else d

    return TokenTerms(loss, nll, _gradient)


def _column(x: jax.Array, logits: jax.Array) -> jax.Array:
    """One number per token, with a last axis of 1 to broadcast over the words of `logits`."""
    return jnp.expand_dims(x, (*range(logits.ndim - 1 - x.ndim), -1))


@scope("loss")
def cross_entropy(
    logits_BTV: jax.Array,
    targets_BT: jax.Array,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """(loss, negative log-likelihood) of each token, float32 [B, T], from the logits of
    `Model.logits`, which are soft-capped where the model says so."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    words_BTV = lax.broadcasted_iota(
        jnp.int32, logits_BTV.shape, 2, out_sharding=_sharding(logits_BTV)
    )
    terms = token_terms(
        logits_BTV,
        targets_BT,
        words_BTV,
        Vocabulary(logits_BTV.shape[2]),
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        log_z=jax.nn.logsumexp(logits_BTV, axis=-1),  # whose derivative JAX has written out
    )
    return terms.loss, terms.nll


def _sharding(x: jax.Array):
    return None if jax.sharding.get_abstract_mesh().empty else jax.typeof(x).sharding
