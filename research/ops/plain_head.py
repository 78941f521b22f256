"""The loss of a head whose table is an array, without all logits.

Logits are computed for one chunk of tokens at a time, and the gradient of a chunk in the forward
pass, while its logits exist.

Letters: B batch, T time, C tokens of a chunk, D model, V vocabulary.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec

from research.devices.backend import platform
from research.ops.elementwise import soft_cap
from research.ops.loss import Vocabulary, token_terms
from research.ops.token_chunks import in_chunks, token_mesh_axes
from research.parallel.collectives import sum_to_place
from research.parallel.placement import gather, partition_spec, spec_entries, storage_axes
from research.scopes import scope


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def head_loss(
    states_BTD: jax.Array,
    table_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    chunk: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """(sum of weight * loss, sum of weight * nll) over all tokens, float32 scalars in nats.

    Logits are `states table^T`, computed in the dtype of the states; with a `softcap` c they are
    c tanh(product / c). `chunk` is the most tokens that have logits at a time, CHUNK for 0. Only
    the first sum has a gradient; the second is for reports.
    """
    settings = label_smoothing, z_loss, softcap, chunk
    return _head(states_BTD, table_VD, targets_BT, weights_BT, settings, of=())[0]


def _head_forward(states_BTD, table_VD, targets_BT, weights_BT, *settings):
    # A frozen table needs no gradient, an array as large as the table itself.
    of = ("states", "table") if table_VD.perturbed else ("states",)
    values = (x.value for x in (states_BTD, table_VD, targets_BT, weights_BT))
    return _head(*values, settings, of=of)


def _head_backward(label_smoothing, z_loss, softcap, chunk, gradients, cotangents):
    # `_chunk` has computed the gradients. The nll is for reports and has none.
    scale = jnp.asarray(0.0) if isinstance(cotangents[0], SymbolicZero) else cotangents[0]
    return (*(None if g is None else g * scale.astype(g.dtype) for g in gradients), None, None)


head_loss.defvjp(_head_forward, _head_backward, symbolic_zeros=True)


@scope("head")
def _head(states_BTD, table_VD, targets_BT, weights_BT, settings, *, of):
    """((loss, nll), (gradient by the states, by the table)) on one device or under shard_map; a
    gradient is None unless `of` names it."""
    local = partial(_local_head, settings=settings, of=of, dtype=table_VD.dtype)
    gathered_VD = gather(table_VD.astype(states_BTD.dtype))
    if jax.sharding.get_abstract_mesh().empty:
        local = partial(local, token_axes=(), stored=((), ()), vocab_axis=None)
        return local(states_BTD, gathered_VD, targets_BT, weights_BT)
    states, stored = PartitionSpec(*spec_entries(states_BTD)), partition_spec(table_VD)
    tokens = PartitionSpec(*spec_entries(states_BTD)[:2])
    sums = (PartitionSpec(), PartitionSpec())
    return jax.shard_map(
        partial(
            local,
            token_axes=token_mesh_axes(tokens),
            stored=storage_axes(stored),
            vocab_axis=spec_entries(gathered_VD)[0],
        ),
        in_specs=(states, partition_spec(gathered_VD), tokens, tokens),
        out_specs=(sums, (states if "states" in of else None, stored if "table" in of else None)),
        check_vma=False,
    )(states_BTD, gathered_VD, jax.reshard(targets_BT, tokens), jax.reshard(weights_BT, tokens))


def _local_head(
    states_BTD,
    table_VD,
    targets_BT,
    weights_BT,
    *,
    settings,
    of,
    dtype,
    token_axes,
    stored,
    vocab_axis,
):
    """`_head` of one device's tokens and its shard of the vocabulary, summed over devices. The
    table's gradient, in `dtype`, is scattered over the mesh axes that store the table."""
    V, D = table_VD.shape
    vocabulary = Vocabulary(V, vocab_axis)
    *terms, most = settings
    # A GPU's products read either order, and transposed copies of the table and of its gradient
    # would be more passes over memory, by its compiler's count; nothing was timed. The others
    # multiply with the table transposed and sum its gradient so.
    turned = platform() != "gpu"
    chunk = partial(_chunk, table_VD, table_VD.T if turned else None, vocabulary, terms, of)
    tokens = in_chunks(states_BTD, targets_BT, weights_BT, most)
    start = jnp.float32(0), jnp.float32(0), None
    if turned:
        start = (*start[:2], jnp.zeros((D, V), jnp.float32) if "table" in of else None)
        (loss, nll, dtable), dstates = lax.scan(chunk, start, tokens)
    else:
        (loss, nll, dtable), dstates = _from_the_first(chunk, start, tokens)
    over_tokens = partial(lax.psum, axis_name=token_axes) if token_axes else lambda x: x
    sums = over_tokens(loss), over_tokens(nll)
    if not of:
        return sums, (None, None)
    dtable_VD = None
    if "table" in of:
        places = stored[::-1] if turned else stored
        dtable_VD = sum_to_place(dtable.astype(dtype), places, token_axes)
        dtable_VD = dtable_VD.T if turned else dtable_VD
    B, T, _ = states_BTD.shape
    dstates_BTD = dstates.reshape(-1, D)[: B * T].reshape(states_BTD.shape)
    return sums, (vocabulary.sum(dstates_BTD), dtable_VD)


def _chunk(table_VD, table_DV, vocabulary, settings, of, carry, tokens):
    """Adds a chunk of tokens to `carry` (loss, nll, gradient by the table) and returns its gradient
    by the states, [C, D]. Where the table is passed transposed too, so is its gradient;
    transposing here would cost a copy a chunk.
    """
    loss, nll, dtable = carry
    states_CD, targets_C, weights_C = tokens
    label_smoothing, z_loss, softcap = settings
    if table_DV is not None:
        logits_CV = jnp.dot(states_CD, table_DV, preferred_element_type=jnp.float32)
    else:
        logits_CV = _rows_times_rows(states_CD, table_VD)
    logits_CV = soft_cap(logits_CV, softcap)
    words_1V = (vocabulary.first + jnp.arange(vocabulary.words))[None, :]
    terms = token_terms(
        logits_CV,
        targets_C,
        words_1V,
        vocabulary,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
    )
    loss += jnp.sum(terms.loss * weights_C)
    nll += jnp.sum(terms.nll * weights_C)
    if not of:
        return (loss, nll, dtable), None
    dlogits_CV = (terms.gradient(logits_CV, words_1V) * weights_C[:, None]).astype(states_CD.dtype)
    if "table" in of:
        pair = (states_CD, dlogits_CV) if table_DV is not None else (dlogits_CV, states_CD)
        added = lax.dot_general(*pair, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        dtable = added if dtable is None else dtable + added
    dstates_CD = jnp.dot(dlogits_CV, table_VD, preferred_element_type=jnp.float32)
    return (loss, nll, dtable), dstates_CD.astype(states_CD.dtype)


def _from_the_first(chunk, start, tokens):
    """A scan over chunks whose first one makes the carry: the sum of the table's gradient then
    begins with a product, and not with zeros that are written and read."""
    carry, dstates_CD = chunk(start, tuple(x[0] for x in tokens))
    if tokens[0].shape[0] == 1:
        return carry, dstates_CD
    carry, dstates_nCD = lax.scan(chunk, carry, tuple(x[1:] for x in tokens))
    if dstates_CD is None:
        return carry, None
    return carry, jnp.concatenate([dstates_CD[None], dstates_nCD])


def _rows_times_rows(x_CD: jax.Array, table_VD: jax.Array) -> jax.Array:
    """The product of each row with each row, float32 [C, V]."""
    return lax.dot_general(
        x_CD, table_VD, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
