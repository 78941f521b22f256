"""Cross-entropy over a vocabulary that may be split over devices, in float32 and in nats.

    loss = (1 - s) * nll + s * mean over V of -log p  (label smoothing, arXiv:1512.00567, section 7)
           + z_loss * log(Z)^2                        (arXiv:2204.02311, section 5)

`token_terms` is that formula and its gradient. `cross_entropy` takes logits. `head_loss` takes the
states before the head and never holds more logits than those of a chunk of tokens: the gradient of
a chunk is taken while its logits are there, in the forward pass.

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

# tokens of a device whose logits exist at a time: enough for its matrix units, little beside the
# states
CHUNK = 512


@dataclass(frozen=True)
class Vocabulary:
    """The V words of which a device has logits; of more, where `axis` names the mesh axis that
    splits them and the code runs under `shard_map`."""

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
    """What `token_terms` says of each token. `gradient(logits, words)` is the derivative of `loss`
    in the logits before their soft cap, in the shape of the logits that it is given."""

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

    `logits` [..., V] are float32 and soft-capped already, where the model does so. The words that
    they belong to, `words`, broadcast against them. Logits may be cut into blocks of words,
    [n, C, v], whose word axes are then `axes`, (0, 2). The target's logit is read by a one-hot
    sum, which needs no gather across the vocabulary's shards. `log_z`, the log of the sum of their
    exponentials, is computed where it is not given.
    """

    def total(x):
        return vocabulary.sum(jnp.sum(x, axis=axes))

    if log_z is None:
        # Its gradient is zero: the shift by the maximum cancels out.
        top = lax.stop_gradient(vocabulary.max(jnp.max(logits, axis=axes)))
        log_z = top + jnp.log(total(jnp.exp(logits - _column(top, logits))))
    nll = log_z - total(jnp.where(words == _column(targets, logits), logits, 0.0))
    # Both products stand even where z_loss is 0: without the second a CPU would fuse the first with
    # what follows, and runs made before would differ by a rounding.
    loss = (1 - label_smoothing) * nll + z_loss * log_z**2 if label_smoothing or z_loss else nll
    if label_smoothing:
        loss += label_smoothing * (log_z - total(logits) / vocabulary.size)

    def gradient(logits, words):
        log_z_1 = _column(log_z, logits)
        d = jnp.exp(logits - log_z_1) * (1 + 2 * z_loss * log_z_1)
        d -= label_smoothing / vocabulary.size
        d -= (1 - label_smoothing) * (words == _column(targets, logits))
        return d * soft_cap_slope(logits, softcap) if softcap else d

    return TokenTerms(loss, nll, gradient)


def _column(x: jax.Array, logits: jax.Array) -> jax.Array:
    """A number a token, to be broadcast against logits whose last axis is of words."""
    return jnp.expand_dims(x, (*range(logits.ndim - 1 - x.ndim), -1))


def cross_entropy(
    logits_BTV: jax.Array,
    targets_BT: jax.Array,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Per token (loss, negative log-likelihood), float32 [B, T], of logits as `Model.logits` gives
    them, soft-capped already where the model does so."""
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
    """(weighted sum of losses, weighted sum of negative log-likelihoods) of the logits `states
    table^T`, float32 scalars.

    The product is in the dtype of the states, and with a `softcap` c logits are c tanh(product /
    c). The second sum is for reports and has no gradient.
    """
    settings = label_smoothing, z_loss, softcap
    return _head(states_BTD, table_VD, targets_BT, weights_BT, settings, of=())[0]


def _head_forward(states_BTD, table_VD, targets_BT, weights_BT, *settings):
    # A frozen table has no gradient, and as large as a table that must not be computed for nothing.
    of = ("states", "table") if table_VD.perturbed else ("states",)
    values = (x.value for x in (states_BTD, table_VD, targets_BT, weights_BT))
    return _head(*values, settings, of=of)


def _head_backward(label_smoothing, z_loss, softcap, gradients, cotangents):
    scale = jnp.asarray(0.0) if isinstance(cotangents[0], SymbolicZero) else cotangents[0]
    return (*(None if g is None else g * scale.astype(g.dtype) for g in gradients), None, None)


head_loss.defvjp(_head_forward, _head_backward, symbolic_zeros=True)


def _head(states_BTD, table_VD, targets_BT, weights_BT, settings, *, of):
    """((loss, nll), (gradient in the states, in the table), each None unless it is among `of`), on
    one device or under shard_map."""
    local = partial(_local_head, settings=settings, of=of, dtype=table_VD.dtype)
    whole_VD = gather(table_VD.astype(states_BTD.dtype))
    if jax.sharding.get_abstract_mesh().empty:
        local = partial(local, token_axes=(), stored=((), ()), vocab_axis=None)
        return local(states_BTD, whole_VD, targets_BT, weights_BT)
    states, stored = PartitionSpec(*spec_entries(states_BTD)), partition_spec(table_VD)
    tokens = PartitionSpec(*spec_entries(states_BTD)[:2])
    sums = (PartitionSpec(), PartitionSpec())
    return jax.shard_map(
        partial(
            local,
            token_axes=token_mesh_axes(tokens),
            stored=storage_axes(stored),
            vocab_axis=spec_entries(whole_VD)[0],
        ),
        in_specs=(states, partition_spec(whole_VD), tokens, tokens),
        out_specs=(sums, (states if "states" in of else None, stored if "table" in of else None)),
        check_vma=False,
    )(states_BTD, whole_VD, jax.reshard(targets_BT, tokens), jax.reshard(weights_BT, tokens))


def token_mesh_axes(tokens: PartitionSpec) -> tuple[str, ...]:
    """The mesh axes that split the tokens [B, T] of a batch."""
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
    """A device's tokens against its part of the vocabulary; sums over the others' parts where there
    are any. The table's gradient, in `dtype`, is left along the axes that store the table."""
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
    """Adds a chunk of tokens to the sums (loss, nll, gradient in the table) and gives its gradient
    in the states, [C, D]. The table comes transposed too: made here, that would be a copy a chunk.
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
