"""The loss of a head whose table is quantized and frozen, without all logits or a dense table.

For each chunk of tokens the table is decoded block by block of its rows, twice: for the logits of
the chunk, which are kept, and for the gradient by the states, which follows from them. This is Cut
Cross-Entropy (arXiv:2411.09009), except that the logits of a chunk are kept, not computed again.

Letters: B batch, T time, C tokens of a chunk, D model, n blocks of v words each.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from research.ops.elementwise import soft_cap
from research.ops.loss import Vocabulary, token_terms
from research.ops.token_chunks import in_chunks, token_mesh_axes
from research.parallel.placement import spec_entries
from research.scopes import scope

# Largest number of table rows that are dense at a time: of a model of 4,096 in bfloat16, 128 MiB.
BLOCK = 16384


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def frozen_head_loss(
    states_BTD: jax.Array,
    table: Any,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    chunk: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """(sum of weight * loss, sum of weight * nll) in nats, as `plain_head.head_loss`, for a `table`
    [V, D] that is a leaf (`research.weights.leaf.Leaf`) with `rows(first, count, dtype)`. Only the
    states get a gradient."""
    # Evaluation has no gradient, and then the table is decoded once.
    settings = label_smoothing, z_loss, softcap, chunk
    return _head(states_BTD, table, targets_BT, weights_BT, settings, gradient=False)[0]


def _forward(states_BTD, table, targets_BT, weights_BT, *settings):
    return _head(states_BTD, table, targets_BT, weights_BT, settings, gradient=True)


def _backward(label_smoothing, z_loss, softcap, chunk, dstates_BTD, cotangents):
    # The gradient was computed with the loss, while the logits were there; here it is scaled.
    return dstates_BTD * cotangents[0].astype(dstates_BTD.dtype), None, None, None


frozen_head_loss.defvjp(_forward, _backward)


@scope("head")
def _head(states_BTD, table, targets_BT, weights_BT, settings, *, gradient):
    """((loss, nll), gradient of the loss by the states or None), on one device or under
    shard_map."""
    local = partial(_local_head, settings=settings, gradient=gradient)
    table = table.gathered()
    if jax.sharding.get_abstract_mesh().empty:
        return local(states_BTD, table, targets_BT, weights_BT, token_axes=(), vocab_axis=None)
    states, tokens = (
        PartitionSpec(*spec_entries(states_BTD)),
        PartitionSpec(*spec_entries(states_BTD)[:2]),
    )
    # A leaf has several arrays, such as codes and scales, each with a sharding of its own.
    table_specs = jax.tree.map(lambda array: PartitionSpec(*spec_entries(array)), table)
    vocab_axis = spec_entries(jax.tree.leaves(table)[0])[0]
    return jax.shard_map(
        partial(local, token_axes=token_mesh_axes(tokens), vocab_axis=vocab_axis),
        in_specs=(states, table_specs, tokens, tokens),
        out_specs=((PartitionSpec(), PartitionSpec()), states if gradient else None),
        check_vma=False,
    )(states_BTD, table, jax.reshard(targets_BT, tokens), jax.reshard(weights_BT, tokens))


def _local_head(
    states_BTD, table, targets_BT, weights_BT, *, settings, gradient, token_axes, vocab_axis
):
    """`_head` of one device's tokens and its shard of the vocabulary, summed over devices."""
    V, D = table.shape
    vocabulary = Vocabulary(V, vocab_axis)
    *terms, most = settings
    chunk = partial(_chunk, table, vocabulary, terms, gradient)
    tokens = in_chunks(states_BTD, targets_BT, weights_BT, most)
    (loss, nll), dstates = lax.scan(chunk, (jnp.float32(0), jnp.float32(0)), tokens)
    over_tokens = partial(lax.psum, axis_name=token_axes) if token_axes else lambda x: x
    sums = over_tokens(loss), over_tokens(nll)
    if not gradient:
        return sums, None
    B, T, _ = states_BTD.shape
    # Chunks are padded to equal size (`in_chunks`), hence the cut. A device's shard of the
    # vocabulary gives its share of a state's gradient, hence the sum.
    return sums, vocabulary.sum(dstates.reshape(-1, D)[: B * T].reshape(states_BTD.shape))


def _chunk(table, vocabulary, settings, gradient, carry, tokens):
    """Adds a chunk of tokens to `carry` (loss, nll) and returns its gradient by the states, [C, D],
    or None."""
    states_CD, targets_C, weights_C = tokens
    label_smoothing, z_loss, softcap = settings
    # Equal blocks of a device's own words: the scan compiles one.
    size = _block(vocabulary.words)
    starts_n = jnp.arange(0, vocabulary.words, size)
    block_words_v = jnp.arange(size)

    def _product(_, start):
        rows_vD = table.rows(start, size, states_CD.dtype)
        logits_Cv = jnp.einsum("CD,vD->Cv", states_CD, rows_vD, preferred_element_type=jnp.float32)
        return None, soft_cap(logits_Cv, softcap)

    # The softmax needs all words, so the logits of all blocks are kept, for this chunk of tokens.
    _, logits_nCv = lax.scan(_product, None, starts_n)
    words_n1v = vocabulary.first + (starts_n[:, None] + block_words_v[None, :])[:, None, :]
    terms = token_terms(
        logits_nCv,
        targets_C,
        words_n1v,
        vocabulary,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        axes=(0, 2),
    )
    loss, nll = carry
    carry = loss + jnp.sum(terms.loss * weights_C), nll + jnp.sum(terms.nll * weights_C)
    if not gradient:
        return carry, None

    # The block is decoded a second time: kept, the dense blocks would be the dense table.
    def _pull(dstates_CD, block):
        start, logits_Cv = block
        words_1v = (vocabulary.first + start + block_words_v)[None, :]
        # In the states' type, as the logits' product was: two operands of one type.
        d_Cv = (terms.gradient(logits_Cv, words_1v) * weights_C[:, None]).astype(states_CD.dtype)
        rows_vD = table.rows(start, size, states_CD.dtype)
        return dstates_CD + jnp.einsum(
            "Cv,vD->CD", d_Cv, rows_vD, preferred_element_type=jnp.float32
        ), None

    zeros_CD = jnp.zeros(states_CD.shape, jnp.float32)
    dstates_CD, _ = lax.scan(_pull, zeros_CD, (starts_n, logits_nCv))
    return carry, dstates_CD.astype(states_CD.dtype)


def _block(rows: int) -> int:
    """How many rows of a table are dense at a time: a divisor of all of them, or all where the
    divisors are poor."""
    # Blocks of a scan are equal. A vocabulary with a large prime factor has no good divisor.
    best = max(size for size in range(1, min(BLOCK, rows) + 1) if rows % size == 0)
    return best if best * 16 >= min(BLOCK, rows) else rows
