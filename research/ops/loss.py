"""Cross-entropy over a vocabulary that may be split over devices, in float32 and in nats.

    loss = (1 - s) * nll + s * mean over V of -log p  (label smoothing, arXiv:1512.00567, section 7)
           + z_loss * log(Z)^2                        (arXiv:2204.02311, section 5)

`cross_entropy` takes logits. `head_loss` takes the states before the head and never holds more logits than those of a
chunk of tokens: the gradient of a chunk is taken while its logits are there, in the forward pass.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from research.ops.einsum import spec


def cross_entropy(
    logits_BTV: jax.Array, targets_BT: jax.Array, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Per token (loss, negative log-likelihood), float32 [B, T].

    The target's logit is read by a one-hot sum, which needs no gather across the vocabulary's shards.
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


CHUNK = 512  # tokens of a device whose logits exist at a time: enough for its matrix units, little beside the states


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def head_loss(
    states_BTD: jax.Array,
    table_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """(weighted sum of losses, weighted sum of negative log-likelihoods) of the logits `states table^T`, float32 scalars.

    `table` is gathered and in the dtype of the states. The second sum is for reports and has no gradient.
    """
    return _head(states_BTD, table_VD, targets_BT, weights_BT, label_smoothing, z_loss, gradient=False)[0]


def _head_forward(states_BTD, table_VD, targets_BT, weights_BT, label_smoothing, z_loss):
    return _head(states_BTD, table_VD, targets_BT, weights_BT, label_smoothing, z_loss, gradient=True)


def _head_backward(label_smoothing, z_loss, gradients, cotangents):
    dstates_BTD, dtable_VD = gradients
    scale = cotangents[0]
    return dstates_BTD * scale.astype(dstates_BTD.dtype), dtable_VD * scale.astype(dtable_VD.dtype), None, None


head_loss.defvjp(_head_forward, _head_backward)


def _head(states_BTD, table_VD, targets_BT, weights_BT, label_smoothing, z_loss, *, gradient):
    """((loss, nll), gradients of the loss in states and table, or None), on one device or under shard_map."""
    local = partial(_local_head, label_smoothing=label_smoothing, z_loss=z_loss, gradient=gradient)
    if jax.sharding.get_abstract_mesh().empty:
        return local(states_BTD, table_VD, targets_BT, weights_BT, token_axes=(), vocab_axis=None)
    states, table = PartitionSpec(*spec(states_BTD)), PartitionSpec(*spec(table_VD))
    tokens = PartitionSpec(*spec(states_BTD)[:2])
    axes = tuple(name for entry in tokens for name in ((entry,) if isinstance(entry, str) else entry or ()))
    sums = (PartitionSpec(), PartitionSpec())
    return jax.shard_map(
        partial(local, token_axes=axes, vocab_axis=spec(table_VD)[0]),
        in_specs=(states, table, tokens, tokens),
        out_specs=(sums, (states, table) if gradient else None),
        check_vma=False,
    )(states_BTD, table_VD, jax.reshard(targets_BT, tokens), jax.reshard(weights_BT, tokens))


def _local_head(
    states_BTD, table_VD, targets_BT, weights_BT, *, label_smoothing, z_loss, gradient, token_axes, vocab_axis
):
    """A device's tokens against its part of the vocabulary; sums over the others' parts where there are any."""
    V, D = table_VD.shape
    over_vocab = partial(lax.psum, axis_name=vocab_axis) if vocab_axis else lambda x: x
    words = V * (lax.axis_size(vocab_axis) if vocab_axis else 1)
    first = lax.axis_index(vocab_axis) * V if vocab_axis else 0
    table_DV = table_VD.T  # once, where the loop's products would each make their own copy

    def chunk(carry, tokens):
        loss, nll, dtable_DV = carry
        states_CD, targets_C, weights_C = tokens
        logits_CV = jnp.dot(states_CD, table_DV, preferred_element_type=jnp.float32)
        top_C1 = jnp.max(logits_CV, axis=-1, keepdims=True)
        top_C1 = lax.pmax(top_C1, vocab_axis) if vocab_axis else top_C1
        log_z_C1 = top_C1 + jnp.log(over_vocab(jnp.sum(jnp.exp(logits_CV - top_C1), axis=-1, keepdims=True)))
        hit_CV = (first + jnp.arange(V))[None, :] == targets_C[:, None]
        nll_C1 = log_z_C1 - over_vocab(jnp.sum(jnp.where(hit_CV, logits_CV, 0.0), axis=-1, keepdims=True))
        loss_C1 = (1 - label_smoothing) * nll_C1 + z_loss * log_z_C1**2
        if label_smoothing:
            loss_C1 += label_smoothing * (log_z_C1 - over_vocab(jnp.sum(logits_CV, axis=-1, keepdims=True)) / words)
        loss += jnp.sum(loss_C1[:, 0] * weights_C)
        nll += jnp.sum(nll_C1[:, 0] * weights_C)
        if not gradient:
            return (loss, nll, dtable_DV), None
        dlogits_CV = jnp.exp(logits_CV - log_z_C1) * (1 + 2 * z_loss * log_z_C1) - label_smoothing / words
        dlogits_CV = ((dlogits_CV - (1 - label_smoothing) * hit_CV) * weights_C[:, None]).astype(states_CD.dtype)
        dtable_DV += lax.dot_general(states_CD, dlogits_CV, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        dstates_CD = jnp.dot(dlogits_CV, table_VD, preferred_element_type=jnp.float32)
        return (loss, nll, dtable_DV), dstates_CD.astype(states_CD.dtype)

    rows = states_BTD.size // D
    size = max(n for n in range(1, min(CHUNK, rows) + 1) if rows % n == 0)
    tokens = states_BTD.reshape(-1, size, D), targets_BT.reshape(-1, size), weights_BT.reshape(-1, size)
    start = jnp.float32(0), jnp.float32(0), jnp.zeros((D, V), jnp.float32) if gradient else None
    (loss, nll, dtable_DV), dstates = lax.scan(chunk, start, tokens)
    over_tokens = partial(lax.psum, axis_name=token_axes) if token_axes else lambda x: x
    sums = over_tokens(loss), over_tokens(nll)
    if not gradient:
        return sums, None
    dtable_VD = over_tokens(dtable_DV.astype(table_VD.dtype)).T
    return sums, (over_vocab(dstates.reshape(states_BTD.shape)), dtable_VD)
