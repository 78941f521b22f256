"""Causal attention in XLA by blocks of queries, each of which meets only the keys up to its end.

Half of a causal score matrix is hidden; blocks skip the computation of most of that half. The
backward pass is written by hand: of the arrays of size [T, S] it keeps only the probabilities, and
it computes the gradients of keys and values transposed, so that XLA's CPU backend transposes the
small operand of each product and not the one of size [T, S].
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from research.devices.backend import barrier
from research.ops.einsum import contract
from research.ops.elementwise import soft_cap, soft_cap_slope
from research.ops.sinks import softmax_beside
from research.parallel.placement import (
    local_shape,
    merge_axes,
    partition_spec,
    reshard_to,
    split_axis,
)

SMALLEST = 32  # least queries of a block; the products of smaller ones are too small to gain time
MOST = 16  # most blocks; each is traced and compiled by itself


def blocks(T: int) -> int:
    """Number of query blocks for T queries: T / 256 within 4..MOST, or 1 where such blocks would be
    unequal or have fewer than SMALLEST queries."""
    # At 4 blocks 5/8 of the scores are computed, at 16 blocks 17/32: more gain little.
    count = min(MOST, max(4, T // 256))
    return count if T % count == 0 and T // count >= SMALLEST else 1


def serves(q_BTNH: jax.Array, visibility) -> bool:
    """True for causal self-attention of packed rows that are long enough for several blocks and not
    split along T over devices."""
    # Without `packed`, keys behind a block's end could be in its past, as those of a cache are.
    T = q_BTNH.shape[1]
    packed = visibility.packed and visibility.causal and visibility.blocks is None
    return packed and local_shape(q_BTNH)[1] == T and blocks(T) > 1


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    visibility,
    scale: float,
    softcap: float = 0.0,
    sinks_N: jax.Array | None = None,
) -> jax.Array:
    """`research.ops.attention.reference`, [B, T, N, H], for cases in which `serves` is true."""
    return _forward(q_BTNH, k_BSKH, v_BSKH, visibility, scale, softcap, sinks_N)[0]


def _forward(q_BTNH, k_BSKH, v_BSKH, visibility, scale, softcap, sinks_N):
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    # Heads before time, as batched products want them: each is a plain matrix product over T, S.
    q_BKGTH = jnp.moveaxis(split_axis(q_BTNH, 2, K), 1, 3)
    k_BKSH, v_BKSH = jnp.moveaxis(k_BSKH, 1, 2), jnp.moveaxis(v_BSKH, 1, 2)
    outs, probs, sunk = [], [], []
    # A Python loop and no scan: each block has its own number of keys, a constant of the program.
    for block in _cuts(T):
        prefix = slice(0, block.stop)
        scores_BKGTS = (
            _scores("BKGTH,BKSH->BKGTS", q_BKGTH[..., block, :], k_BKSH[:, :, prefix]) * scale
        )
        scores_BKGTS = soft_cap(scores_BKGTS, softcap)
        seen_BTS = _part(visibility, block, prefix).mask_BTS()
        scores_BKGTS = jnp.where(seen_BTS[:, None, None], scores_BKGTS, jnp.finfo(jnp.float32).min)
        probs_BKGTS, sunk_BKGT1 = softmax_beside(scores_BKGTS, sinks_N)
        probs_BKGTS = probs_BKGTS.astype(q_BTNH.dtype)
        outs.append(contract("BKGTS,BKSH->BKGTH", probs_BKGTS, v_BKSH[:, :, prefix]))
        probs.append(probs_BKGTS)
        sunk.append(sunk_BKGT1)
    out_BKGTH = jnp.concatenate(outs, axis=3)
    return jnp.moveaxis(out_BKGTH, 3, 1).reshape(B, T, N, H), (
        q_BKGTH,
        k_BKSH,
        v_BKSH,
        out_BKGTH,
        probs,
        None if sinks_N is None else (sinks_N, jnp.concatenate(sunk, axis=3)),
    )


def _backward(scale, softcap, saved, dout_BTNH):
    q_BKGTH, k_BKSH, v_BKSH, out_BKGTH, probs, sinks = saved
    B, K, G, T, H = q_BKGTH.shape
    dout_BKGTH = jnp.moveaxis(split_axis(dout_BTNH, 2, K), 1, 3)
    # The softmax's gradient is p * (dp - sum_s p dp), and that sum equals dout . out (the D of
    # arXiv:2205.14135, algorithm 4), which needs no [T, S] array.
    delta_BKGT1 = jnp.sum((dout_BKGTH * out_BKGTH).astype(jnp.float32), axis=-1, keepdims=True)
    dqs, dk_BKSH, dv_BKSH = [], 0.0, 0.0
    for block, probs_BKGTS in zip(_cuts(T), probs):
        prefix = slice(0, block.stop)
        dblock_BKGTH, queries_BKGTH = dout_BKGTH[..., block, :], q_BKGTH[..., block, :]
        # With out = P V: dP = dout V^T, and dV = P^T dout below.
        dprobs_BKGTS = _scores("BKGTH,BKSH->BKGTS", dblock_BKGTH, v_BKSH[:, :, prefix])
        # Hidden keys have probability 0, hence no gradient: the mask is not needed again.
        dscores_BKGTS = probs_BKGTS * (dprobs_BKGTS - delta_BKGT1[..., block, :]) * scale
        if softcap:
            # Scores are computed again: kept, they would be a second [T, S] array in each layer.
            scores_BKGTS = _scores("BKGTH,BKSH->BKGTS", queries_BKGTH, k_BKSH[:, :, prefix]) * scale
            dscores_BKGTS *= soft_cap_slope(soft_cap(scores_BKGTS, softcap), softcap)
        # float32 up to here; both products below take the activations' type.
        dscores_BKGTS = dscores_BKGTS.astype(q_BKGTH.dtype)
        # With scores = scale Q K^T: dQ = dS K, and dK = dS^T Q below.
        dqs.append(contract("BKGTS,BKSH->BKGTH", dscores_BKGTS, k_BKSH[:, :, prefix]))
        # Keys after the block were not used in it; their gradient is 0.
        behind = ((0, 0), (0, 0), (0, T - block.stop), (0, 0))
        dk_BKHS = _scores("BKGTH,BKGTS->BKHS", queries_BKGTH, dscores_BKGTS)
        dv_BKHS = _scores("BKGTH,BKGTS->BKHS", dblock_BKGTH, probs_BKGTS)
        # Without the barrier XLA folds the transposes below into the products, in a form for which
        # its CPU backend has no bfloat16 product.
        dk_BKHS, dv_BKHS = barrier((dk_BKHS, dv_BKHS))
        dk_BKSH += jnp.pad(jnp.swapaxes(dk_BKHS, 2, 3), behind)
        dv_BKSH += jnp.pad(jnp.swapaxes(dv_BKHS, 2, 3), behind)
    dq_BTNH = jnp.moveaxis(jnp.concatenate(dqs, axis=3), 3, 1).reshape(B, T, K * G, H)
    dk_BSKH, dv_BSKH = (jnp.moveaxis(d.astype(q_BKGTH.dtype), 2, 1) for d in (dk_BKSH, dv_BKSH))
    # None: positions and segments are integers and have no gradient.
    return dq_BTNH, dk_BSKH, dv_BSKH, None, sinks and _sinks_gradient(*sinks, delta_BKGT1)


attend.defvjp(_forward, _backward)


def _sinks_gradient(sinks_N: jax.Array, sunk_BKGT1: jax.Array, delta_BKGT1: jax.Array) -> jax.Array:
    """The gradient [N] of the sinks, whose own values are 0: p (0 - sum_s p dp)."""
    dsinks_KG = -jnp.sum(sunk_BKGT1 * delta_BKGT1, axis=(0, 3, 4))
    return reshard_to(merge_axes(dsinks_KG, 0).astype(sinks_N.dtype), partition_spec(sinks_N))


def _cuts(T: int) -> list[slice]:
    size = T // blocks(T)
    return [slice(start, start + size) for start in range(0, T, size)]


def _part(visibility, queries: slice, keys: slice):
    """The visibility between some queries and some keys."""
    return replace(
        visibility,
        q_positions_BT=visibility.q_positions_BT[:, queries],
        q_segments_BT=visibility.q_segments_BT[:, queries],
        k_positions_BS=visibility.k_positions_BS[:, keys],
        k_segments_BS=visibility.k_segments_BS[:, keys],
    )


_scores = partial(contract, dtype=jnp.float32)
