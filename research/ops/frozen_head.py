"""The head's loss over a table that is held in codes and not trained: neither the logits nor the
table are ever whole.

A chunk of tokens meets the table block by block of its rows, twice: for the logits, which are kept
for the chunk, and for the gradient of the states, which follows from them (the idea of
arXiv:2411.09009, Cut Cross-Entropy, with the logits of a chunk kept instead of computed again).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from research.ops.loss import in_chunks, vocabulary
from research.parallel.placement import spec

BLOCK = 16384  # rows of the table that are dense at a time


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def frozen_head_loss(
    states_BTD: jax.Array,
    table: Any,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """`research.ops.loss.head_loss` of a stand-in with `shape`, `gathered()` and `rows(first,
    count, dtype)`."""
    return _head(
        states_BTD, table, targets_BT, weights_BT, label_smoothing, z_loss, gradient=False
    )[0]


def _forward(states_BTD, table, targets_BT, weights_BT, label_smoothing, z_loss):
    return _head(states_BTD, table, targets_BT, weights_BT, label_smoothing, z_loss, gradient=True)


def _backward(label_smoothing, z_loss, dstates_BTD, cotangents):
    return dstates_BTD * cotangents[0].astype(dstates_BTD.dtype), None, None, None


frozen_head_loss.defvjp(_forward, _backward)


def _head(states_BTD, table, targets_BT, weights_BT, label_smoothing, z_loss, *, gradient):
    """((loss, nll), gradient of the loss in the states or None), on one device or under
    shard_map."""
    local = partial(_local_head, label_smoothing=label_smoothing, z_loss=z_loss, gradient=gradient)
    table = table.gathered()
    if jax.sharding.get_abstract_mesh().empty:
        return local(states_BTD, table, targets_BT, weights_BT, token_axes=(), vocab_axis=None)
    states, tokens = PartitionSpec(*spec(states_BTD)), PartitionSpec(*spec(states_BTD)[:2])
    axes = tuple(
        name for entry in tokens for name in ((entry,) if isinstance(entry, str) else entry or ())
    )
    parts = jax.tree.map(lambda part: PartitionSpec(*spec(part)), table)
    vocab_axis = spec(jax.tree.leaves(table)[0])[0]
    return jax.shard_map(
        partial(local, token_axes=axes, vocab_axis=vocab_axis),
        in_specs=(states, parts, tokens, tokens),
        out_specs=((PartitionSpec(), PartitionSpec()), states if gradient else None),
        check_vma=False,
    )(states_BTD, table, jax.reshard(targets_BT, tokens), jax.reshard(weights_BT, tokens))


def _local_head(
    states_BTD,
    table,
    targets_BT,
    weights_BT,
    *,
    label_smoothing,
    z_loss,
    gradient,
    token_axes,
    vocab_axis,
):
    """A device's tokens against its part of the vocabulary; sums over the others' parts where there
    are any."""
    V, D = table.shape
    over_vocab, words, first = vocabulary(V, vocab_axis)
    size = _block(V)
    starts = jnp.arange(0, V, size)

    def chunk(carry, tokens):
        loss, nll = carry
        states_CD, targets_C, weights_C = tokens

        def product(_, start):
            rows_vD = table.rows(start, size, states_CD.dtype)
            return None, jnp.einsum(
                "CD,vD->Cv", states_CD, rows_vD, preferred_element_type=jnp.float32
            )

        _, logits_nCv = lax.scan(product, None, starts)
        top_C1 = jnp.max(logits_nCv, axis=(0, 2))[:, None]
        top_C1 = lax.pmax(top_C1, vocab_axis) if vocab_axis else top_C1
        sums_C1 = jnp.sum(jnp.exp(logits_nCv - top_C1[None]), axis=(0, 2))[:, None]
        log_z_C1 = top_C1 + jnp.log(over_vocab(sums_C1))
        words_n1v = first + (starts[:, None] + jnp.arange(size)[None, :])[:, None, :]
        hit_nCv = words_n1v == targets_C[None, :, None]
        nll_C1 = log_z_C1 - over_vocab(
            jnp.sum(jnp.where(hit_nCv, logits_nCv, 0.0), axis=(0, 2))[:, None]
        )
        loss_C1 = (1 - label_smoothing) * nll_C1 + z_loss * log_z_C1**2
        if label_smoothing:
            mean_C1 = over_vocab(jnp.sum(logits_nCv, axis=(0, 2))[:, None]) / words
            loss_C1 += label_smoothing * (log_z_C1 - mean_C1)
        carry = loss + jnp.sum(loss_C1[:, 0] * weights_C), nll + jnp.sum(nll_C1[:, 0] * weights_C)
        if not gradient:
            return carry, None

        def pull(dstates_CD, block):
            start, logits_Cv = block
            hit_Cv = (first + start + jnp.arange(size))[None, :] == targets_C[:, None]
            d_Cv = (
                jnp.exp(logits_Cv - log_z_C1) * (1 + 2 * z_loss * log_z_C1)
                - label_smoothing / words
            )
            d_Cv = ((d_Cv - (1 - label_smoothing) * hit_Cv) * weights_C[:, None]).astype(
                states_CD.dtype
            )
            rows_vD = table.rows(start, size, states_CD.dtype)
            return dstates_CD + jnp.einsum(
                "Cv,vD->CD", d_Cv, rows_vD, preferred_element_type=jnp.float32
            ), None

        dstates_CD, _ = lax.scan(
            pull, jnp.zeros(states_CD.shape, jnp.float32), (starts, logits_nCv)
        )
        return carry, dstates_CD.astype(states_CD.dtype)

    tokens = in_chunks(states_BTD, targets_BT, weights_BT)
    (loss, nll), dstates = lax.scan(chunk, (jnp.float32(0), jnp.float32(0)), tokens)
    over_tokens = partial(lax.psum, axis_name=token_axes) if token_axes else lambda x: x
    sums = over_tokens(loss), over_tokens(nll)
    if not gradient:
        return sums, None
    B, T, _ = states_BTD.shape
    return sums, over_vocab(dstates.reshape(-1, D)[: B * T].reshape(states_BTD.shape))


def _block(rows: int) -> int:
    """How many rows of a table are dense at a time: a divisor of all of them, or all where the
    divisors are poor."""
    best = max(size for size in range(1, min(BLOCK, rows) + 1) if rows % size == 0)
    return best if best * 16 >= min(BLOCK, rows) else rows
