"""Cross-entropy over a vocabulary that may be split over devices, in float32 and in nats.

    loss = (1 - s) * nll + s * mean over V of -log p  (label smoothing, arXiv:1512.00567, section 7)
           + z_loss * log(Z)^2                        (arXiv:2204.02311, section 5)

`cross_entropy` takes logits. `head_loss` takes the states before the head and never holds more
logits than those of a chunk of tokens: the gradient of a chunk is taken while its logits are there,
in the forward pass.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec

from research.parallel.collectives import sum_to_place
from research.parallel.placement import gather, placed, spec, storing


def cross_entropy(
    logits_BTV: jax.Array,
    targets_BT: jax.Array,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Per token (loss, negative log-likelihood), float32 [B, T].

    The target's logit is read by a one-hot sum, which needs no gather across the vocabulary's
    shards.
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


# tokens of a device whose logits exist at a time: enough for its matrix units, little beside the
# states
CHUNK = 512


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def head_loss(
    states_BTD: jax.Array,
    table_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """(weighted sum of losses, weighted sum of negative log-likelihoods) of the logits `states
    table^T`, float32 scalars.

    The product is in the dtype of the states. The second sum is for reports and has no gradient.
    """
    return _head(states_BTD, table_VD, targets_BT, weights_BT, label_smoothing, z_loss, of=())[0]


def _head_forward(states_BTD, table_VD, targets_BT, weights_BT, label_smoothing, z_loss):
    # A frozen table has no gradient, and as large as a table that must not be computed for nothing.
    of = ("states", "table") if table_VD.perturbed else ("states",)
    values = (x.value for x in (states_BTD, table_VD, targets_BT, weights_BT))
    return _head(*values, label_smoothing, z_loss, of=of)


def _head_backward(label_smoothing, z_loss, gradients, cotangents):
    scale = jnp.asarray(0.0) if isinstance(cotangents[0], SymbolicZero) else cotangents[0]
    return (*(None if g is None else g * scale.astype(g.dtype) for g in gradients), None, None)


head_loss.defvjp(_head_forward, _head_backward, symbolic_zeros=True)


def _head(states_BTD, table_VD, targets_BT, weights_BT, label_smoothing, z_loss, *, of):
    """((loss, nll), (gradient in the states, in the table), each None unless it is among `of`), on
    one device or under shard_map."""
    local = partial(
        _local_head, label_smoothing=label_smoothing, z_loss=z_loss, of=of, dtype=table_VD.dtype
    )
    whole_VD = gather(table_VD.astype(states_BTD.dtype))
    if jax.sharding.get_abstract_mesh().empty:
        return local(
            states_BTD,
            whole_VD,
            targets_BT,
            weights_BT,
            token_axes=(),
            stored=((), ()),
            vocab_axis=None,
        )
    states, stored = PartitionSpec(*spec(states_BTD)), placed(table_VD)
    tokens = PartitionSpec(*spec(states_BTD)[:2])
    axes = tuple(
        name for entry in tokens for name in ((entry,) if isinstance(entry, str) else entry or ())
    )
    sums = (PartitionSpec(), PartitionSpec())
    return jax.shard_map(
        partial(local, token_axes=axes, stored=storing(stored), vocab_axis=spec(whole_VD)[0]),
        in_specs=(states, placed(whole_VD), tokens, tokens),
        out_specs=(sums, (states if "states" in of else None, stored if "table" in of else None)),
        check_vma=False,
    )(states_BTD, whole_VD, jax.reshard(targets_BT, tokens), jax.reshard(weights_BT, tokens))


def _local_head(
    states_BTD,
    table_VD,
    targets_BT,
    weights_BT,
    *,
    label_smoothing,
    z_loss,
    of,
    dtype,
    token_axes,
    stored,
    vocab_axis,
):
    """A device's tokens against its part of the vocabulary; sums over the others' parts where there
    are any. The table's gradient, in `dtype`, is left along the axes that store the table."""
    V, D = table_VD.shape
    over_vocab, words, first = vocabulary(V, vocab_axis)
    table_DV = table_VD.T  # once, where the loop's products would each make their own copy

    def chunk(carry, tokens):
        loss, nll, dtable_DV = carry
        states_CD, targets_C, weights_C = tokens
        logits_CV = jnp.dot(states_CD, table_DV, preferred_element_type=jnp.float32)
        top_C1 = jnp.max(logits_CV, axis=-1, keepdims=True)
        top_C1 = lax.pmax(top_C1, vocab_axis) if vocab_axis else top_C1
        log_z_C1 = top_C1 + jnp.log(
            over_vocab(jnp.sum(jnp.exp(logits_CV - top_C1), axis=-1, keepdims=True))
        )
        hit_CV = (first + jnp.arange(V))[None, :] == targets_C[:, None]
        nll_C1 = log_z_C1 - over_vocab(
            jnp.sum(jnp.where(hit_CV, logits_CV, 0.0), axis=-1, keepdims=True)
        )
        loss_C1 = (1 - label_smoothing) * nll_C1 + z_loss * log_z_C1**2
        if label_smoothing:
            loss_C1 += label_smoothing * (
                log_z_C1 - over_vocab(jnp.sum(logits_CV, axis=-1, keepdims=True)) / words
            )
        loss += jnp.sum(loss_C1[:, 0] * weights_C)
        nll += jnp.sum(nll_C1[:, 0] * weights_C)
        if not of:
            return (loss, nll, dtable_DV), None
        dlogits_CV = (
            jnp.exp(logits_CV - log_z_C1) * (1 + 2 * z_loss * log_z_C1) - label_smoothing / words
        )
        dlogits_CV = ((dlogits_CV - (1 - label_smoothing) * hit_CV) * weights_C[:, None]).astype(
            states_CD.dtype
        )
        if "table" in of:
            dtable_DV += lax.dot_general(
                states_CD, dlogits_CV, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
            )
        dstates_CD = jnp.dot(dlogits_CV, table_VD, preferred_element_type=jnp.float32)
        return (loss, nll, dtable_DV), dstates_CD.astype(states_CD.dtype)

    tokens = in_chunks(states_BTD, targets_BT, weights_BT)
    start = (
        jnp.float32(0),
        jnp.float32(0),
        jnp.zeros((D, V), jnp.float32) if "table" in of else None,
    )
    (loss, nll, dtable_DV), dstates = lax.scan(chunk, start, tokens)
    over_tokens = partial(lax.psum, axis_name=token_axes) if token_axes else lambda x: x
    sums = over_tokens(loss), over_tokens(nll)
    dtable_VD = (
        sum_to_place(dtable_DV.astype(dtype), stored[::-1], token_axes).T if "table" in of else None
    )
    if not of:
        return sums, (None, None)
    B, T, _ = states_BTD.shape
    return sums, (over_vocab(dstates.reshape(-1, D)[: B * T].reshape(states_BTD.shape)), dtable_VD)


def vocabulary(
    V: int, axis: str | None
) -> tuple[Callable[[jax.Array], jax.Array], int, jax.Array | int]:
    """For a device's V words of those split over a mesh axis: the sum over all parts, the number of
    all words, and the first of its own."""
    if axis is None:
        return lambda x: x, V, 0
    return partial(lax.psum, axis_name=axis), V * lax.axis_size(axis), lax.axis_index(axis) * V


def in_chunks(
    states_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
) -> tuple[jax.Array, ...]:
    """All tokens as [n, C, D], [n, C] and [n, C]; the last chunk is filled up with tokens of weight
    0 where C does not divide their number."""
    D = states_BTD.shape[-1]
    rows = states_BTD.size // D
    best = max(n for n in range(1, min(CHUNK, rows) + 1) if rows % n == 0)
    size = best if 4 * best >= min(CHUNK, rows) else CHUNK
    added = -rows % size
    flat = states_BTD.reshape(rows, D), targets_BT.reshape(rows), weights_BT.reshape(rows)
    filled = (jnp.pad(x, [(0, added)] + [(0, 0)] * (x.ndim - 1)) if added else x for x in flat)
    return tuple(x.reshape(-1, size, *x.shape[1:]) for x in filled)
