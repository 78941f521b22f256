"""Cross-entropy over a vocabulary that may be split over devices, in float32 and in nats."""

import jax
import jax.numpy as jnp
from jax import lax


def cross_entropy(
    logits_BTV: jax.Array, targets_BT: jax.Array, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Per token (loss, negative log-likelihood), float32 [B, T].

    loss = (1 - s) * nll + s * mean over V of -log p (arXiv:1512.00567, section 7) + z_loss * log(Z)^2
    (arXiv:2204.02311, section 5). The target's logit is read by a one-hot sum, which needs no gather across the
    vocabulary's shards.
    """
    logits_BTV = logits_BTV.astype(jnp.float32)
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    vocab = lax.broadcasted_iota(jnp.int32, logits_BTV.shape, 2, out_sharding=_sharding(logits_BTV))
    target_BT = jnp.sum(jnp.where(vocab == targets_BT[:, :, None], logits_BTV, 0.0), axis=-1)
    nll_BT = log_z_BT - target_BT
    loss_BT = nll_BT
    if label_smoothing:
        uniform_BT = log_z_BT - jnp.mean(logits_BTV, axis=-1)
        loss_BT = (1 - label_smoothing) * nll_BT + label_smoothing * uniform_BT
    if z_loss:
        loss_BT += z_loss * log_z_BT**2
    return loss_BT, nll_BT


def _sharding(x: jax.Array):
    return None if jax.sharding.get_abstract_mesh().empty else jax.typeof(x).sharding
