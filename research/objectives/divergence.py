"""How far a student's next-token distribution is from a teacher's, in nats, without logits
[B, T, V] of all tokens at once.

    weight b  0            KL(p || q), forward: the student covers what the teacher says
              1            KL(q || p), reverse: the student says nothing that the teacher would not
              between      b KL(p || m) + (1 - b) KL(q || m),  m = b p + (1 - b) q

where p is the teacher's and q the student's softmax(logits / temperature): the generalized
Jensen-Shannon divergence of GKD (arXiv:2306.13649, equation 1). Letters: B batch, T time,
V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.models.model import Model
from research.ops.loss import cross_entropy
from research.ops.token_chunks import CHUNK
from research.parallel.placement import local_shape, split_axis
from research.tree import Tree


def divergence(
    student_BTV: jax.Array, teacher_BTV: jax.Array, weight: float, temperature: float = 1.0
) -> jax.Array:
    """The divergence of each token in nats, float32 [B, T], of logits. Not multiplied by the
    square of the temperature; the teacher has no gradient."""
    q_BTV = jax.nn.log_softmax(student_BTV.astype(jnp.float32) / temperature, axis=-1)
    fixed_BTV = jax.lax.stop_gradient(teacher_BTV).astype(jnp.float32)
    p_BTV = jax.nn.log_softmax(fixed_BTV / temperature, axis=-1)
    if weight == 0:
        return _kl(p_BTV, q_BTV)
    if weight == 1:
        return _kl(q_BTV, p_BTV)
    # log(b p + (1 - b) q) of logarithms, since either may be too small for a float32.
    m_BTV = jnp.logaddexp(jnp.log(weight) + p_BTV, jnp.log1p(-weight) + q_BTV)
    return weight * _kl(p_BTV, m_BTV) + (1 - weight) * _kl(q_BTV, m_BTV)


def _kl(p_BTV: jax.Array, q_BTV: jax.Array) -> jax.Array:
    """KL(p || q) of log-probabilities."""
    return jnp.sum(jnp.exp(p_BTV) * (p_BTV - q_BTV), axis=-1)


class Side(NamedTuple):
    """A model whose head reads `hidden_BTD`, its last states."""

    model: Model
    params: Tree
    hidden_BTD: jax.Array


class Sums(NamedTuple):
    """Over the tokens that count, in nats: the divergence, and -log p(target) of the student."""

    divergence: jax.Array
    nll: jax.Array


def divergence_sums(
    student: Side,
    teacher: Side,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    weight: float,
    temperature: float,
) -> Sums:
    """The sums over tokens of weight 1. Both models' logits exist for some tokens at a time, and
    are computed again for the gradient."""

    # Only hidden states are kept for the backward pass, and no [tokens, V] of any piece.
    @jax.checkpoint
    def _piece(sums: Sums, tokens) -> tuple[Sums, None]:
        own_BTD, other_BTD, targets_BT, weights_BT = tokens
        logits_BTV = student.model.logits(student.params, own_BTD)
        teacher_BTV = teacher.model.logits(teacher.params, other_BTD)
        apart_BT = divergence(logits_BTV, teacher_BTV, weight, temperature)
        nll_BT = cross_entropy(logits_BTV, targets_BT)[1]
        # Padding may have anything, also what is not finite.
        apart = jnp.sum(jnp.where(weights_BT > 0, apart_BT, 0) * weights_BT)
        return Sums(sums.divergence + apart, sums.nll + jnp.sum(nll_BT * weights_BT)), None

    tokens = student.hidden_BTD, teacher.hidden_BTD, targets_BT, weights_BT
    most = student.model.execution.head_tokens or CHUNK
    return _over_pieces(_piece, Sums(jnp.float32(0), jnp.float32(0)), tokens, most)


def _over_pieces(piece: Callable, start: Sums, tokens: tuple[jax.Array, ...], most: int) -> Sums:
    """`piece` over equal lengths of the tokens [B, T, ...], at most `most` of them at once."""
    B, T, _ = local_shape(tokens[0])
    # A length that is split over devices stays whole: pieces of it would be on some devices only.
    if B * T <= most or T != tokens[0].shape[1]:
        return piece(start, tokens)[0]
    count = next(n for n in range(1, T + 1) if T % n == 0 and (B * T // n <= most or n == T))
    cut = partial(split_axis, axis=1, parts=count)
    pieces = tuple(jnp.moveaxis(cut(x), 1, 0) for x in tokens)
    return jax.lax.scan(piece, start, pieces)[0]
