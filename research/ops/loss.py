"""Cross-entropy over a vocabulary that may be split over devices, in float32 and in nats.

    loss = (1 - s) * nll + s * mean over V of -log p  (label smoothing, arXiv:1512.00567, section 7)
           + z_loss * log(Z)^2                        (arXiv:2204.02311, section 5)

`token_terms` is that formula with its gradient. `cross_entropy` takes logits. `head_loss` takes the
states before the head and computes logits for one chunk of tokens at a time; the gradient of a
chunk is computed in the forward pass, while its logits exist.

Letters: B batch, T time, C tokens of a chunk, D model, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec

from research.ops.elementwise import soft_cap, soft_cap_slope
from research.parallel.collectives import sum_to_place
from research.parallel.placement import (
    gather,
    mesh_axes,
    partition_spec,
    spec_entries,
    storage_axes,
)

# Tokens of a device whose logits exist at a time: enough to keep its matrix units busy.
CHUNK = 512


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


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def head_loss(
    states_BTD: jax.Array,
    table_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """(sum of weight * loss, sum of weight * nll) over all tokens, float32 scalars in nats.

    Logits are `states table^T`, computed in the dtype of the states; with a `softcap` c they are
    c tanh(product / c). Only the first sum has a gradient; the second is for reports.
    """
    settings = label_smoothing, z_loss, softcap
    return _head(states_BTD, table_VD, targets_BT, weights_BT, settings, of=())[0]


def _head_forward(states_BTD, table_VD, targets_BT, weights_BT, *settings):
    # A frozen table needs no gradient, an array as large as the table itself.
    of = ("states", "table") if table_VD.perturbed else ("states",)
    values = (x.value for x in (states_BTD, table_VD, targets_BT, weights_BT))
    return _head(*values, settings, of=of)


def _head_backward(label_smoothing, z_loss, softcap, gradients, cotangents):
    # `_chunk` has computed the gradients. The nll is for reports and has none.
    scale = jnp.asarray(0.0) if isinstance(cotangents[0], SymbolicZero) else cotangents[0]
    return (*(None if g is None else g * scale.astype(g.dtype) for g in gradients), None, None)


head_loss.defvjp(_head_forward, _head_backward, symbolic_zeros=True)


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


def token_mesh_axes(tokens: PartitionSpec) -> tuple[str, ...]:
    """Names of the mesh axes that split the tokens [B, T] of a batch, by their PartitionSpec."""
    return tuple(name for entry in tokens for name in mesh_axes(entry))


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
    chunk = partial(_chunk, table_VD, table_VD.T, vocabulary, settings, of)
    tokens = in_chunks(states_BTD, targets_BT, weights_BT)
    start = (
        jnp.float32(0),
        jnp.float32(0),
        jnp.zeros((D, V), jnp.float32) if "table" in of else None,
    )
    (loss, nll, dtable_DV), dstates = lax.scan(chunk, start, tokens)
    over_tokens = partial(lax.psum, axis_name=token_axes) if token_axes else lambda x: x
    sums = over_tokens(loss), over_tokens(nll)
    if not of:
        return sums, (None, None)
    dtable_VD = None
    if "table" in of:
        dtable_VD = sum_to_place(dtable_DV.astype(dtype), stored[::-1], token_axes).T
    B, T, _ = states_BTD.shape
    dstates_BTD = dstates.reshape(-1, D)[: B * T].reshape(states_BTD.shape)
    return sums, (vocabulary.sum(dstates_BTD), dtable_VD)


def _chunk(table_VD, table_DV, vocabulary, settings, of, carry, tokens):
    """Adds a chunk of tokens to `carry` (loss, nll, gradient by the table) and returns its gradient
    by the states, [C, D]. The table is passed transposed too; transposing here costs a copy a
    chunk.
    """
    loss, nll, dtable_DV = carry
    states_CD, targets_C, weights_C = tokens
    label_smoothing, z_loss, softcap = settings
    logits_CV = jnp.dot(states_CD, table_DV, preferred_element_type=jnp.float32)
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
        return (loss, nll, dtable_DV), None
    dlogits_CV = (terms.gradient(logits_CV, words_1V) * weights_C[:, None]).astype(states_CD.dtype)
    if "table" in of:
        dtable_DV += lax.dot_general(
            states_CD, dlogits_CV, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
    dstates_CD = jnp.dot(dlogits_CV, table_VD, preferred_element_type=jnp.float32)
    return (loss, nll, dtable_DV), dstates_CD.astype(states_CD.dtype)


def in_chunks(
    states_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
) -> tuple[jax.Array, ...]:
    """All tokens in n chunks of C: [n, C, D], [n, C] and [n, C]. The last chunk is padded with
    tokens of weight 0 where C does not divide their number."""
    D = states_BTD.shape[-1]
    rows = states_BTD.size // D
    # An even division saves the copy of padding, unless its chunks would be tiny.
    best = max(n for n in range(1, min(CHUNK, rows) + 1) if rows % n == 0)
    size = best if 4 * best >= min(CHUNK, rows) else CHUNK
    added = -rows % size
    flat = states_BTD.reshape(rows, D), targets_BT.reshape(rows), weights_BT.reshape(rows)
    filled = (jnp.pad(x, [(0, added)] + [(0, 0)] * (x.ndim - 1)) if added else x for x in flat)
    return tuple(x.reshape(-1, size, *x.shape[1:]) for x in filled)
