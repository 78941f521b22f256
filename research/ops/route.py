"""Mixture of experts: top-k routing without dropped tokens, and the experts' products under shard_map.

Tokens are gathered over the expert axis, each device sorts those meant for its own experts to the front and multiplies
them group by group (`lax.ragged_dot`), and the sums go back to the tokens' owners by a reduce-scatter. No capacity, so
the result does not depend on the mesh.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from research.ops.einsum import gathered, grouped, spec


def top_k(logits_BTE: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Mixing weights float32 [B, T, k] and expert ids int32 [B, T, k]: softmax over the chosen k (arXiv:2401.04088, 2.1)."""
    chosen, ids_BTk = lax.top_k(logits_BTE, k)
    return jax.nn.softmax(chosen, axis=-1), ids_BTk


def load_balance(logits_BTE: jax.Array, ids_BTk: jax.Array, weights_BT: jax.Array) -> jax.Array:
    """E * sum over experts of (share of assignments) * (mean router probability), 1 when uniform, over counted tokens.

    arXiv:2101.03961, eq. 4, with each of a token's k assignments counting 1/k.
    """
    experts = logits_BTE.shape[-1]
    counted = weights_BT / jnp.maximum(jnp.sum(weights_BT), 1.0)
    probs_BTE = jax.nn.softmax(logits_BTE, axis=-1)
    share_E = jnp.sum(jnp.mean(jax.nn.one_hot(ids_BTk, experts), axis=2) * counted[:, :, None], axis=(0, 1))
    prob_E = jnp.sum(probs_BTE * counted[:, :, None], axis=(0, 1))
    return experts * jnp.sum(share_E * prob_E)


def experts(
    x_BTD: jax.Array,
    weights_BTk: jax.Array,
    ids_BTk: jax.Array,
    gate_EDF: Any,
    up_EDF: Any,
    down_EFD: Any,
    activation: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Sum over a token's experts of weight * (activation(x gate) * (x up)) down, [B, T, D] in the dtype of `x`.

    The experts' matrices are arrays or stand-ins, whose parts are gathered and split as they are.
    """
    matrices = [gathered(w, x_BTD.dtype) for w in (gate_EDF, up_EDF, down_EFD)]
    if jax.sharding.get_abstract_mesh().empty:
        return _local(x_BTD, weights_BTk, ids_BTk, matrices, activation, 0)

    split_tokens = "expert" in (spec(x_BTD)[0] or ())  # not so for a batch too small to split, as in decoding
    specs = jax.tree.map(lambda part: PartitionSpec(*spec(part)), matrices)
    entries = jax.tree.leaves(specs, is_leaf=lambda node: isinstance(node, PartitionSpec))
    split_experts, split_hidden = (any(name in entry for entry in entries) for name in ("expert", "tensor"))

    def island(x, weights, ids, matrices):
        # Every device of one expert row sees all of that row's tokens and keeps those of its own experts.
        if split_tokens and split_experts:
            x, weights, ids = (lax.all_gather(a, "expert", axis=0, tiled=True) for a in (x, weights, ids))
        first = lax.axis_index("expert") * matrices[0].shape[0] if split_experts else 0
        y = _local(x, weights, ids, matrices, activation, first)
        y = lax.psum(y, "tensor") if split_hidden else y
        if not split_experts:
            return y
        return lax.psum_scatter(y, "expert", scatter_dimension=0, tiled=True) if split_tokens else lax.psum(y, "expert")

    tokens = PartitionSpec(*spec(x_BTD))
    return jax.shard_map(island, in_specs=(tokens, tokens, tokens, specs), out_specs=tokens, check_vma=False)(
        x_BTD, weights_BTk, ids_BTk, matrices
    )


def _local(x_BTD, weights_BTk, ids_BTk, matrices, activation, first) -> jax.Array:
    """Contribution of the experts `first`, `first + 1`, ... held in these weights; other assignments add nothing."""
    B, T, D = x_BTD.shape
    gate_EDF, up_EDF, down_EFD = matrices
    held, k = gate_EDF.shape[0], ids_BTk.shape[-1]
    expert = ids_BTk.reshape(-1) - first
    mine = (expert >= 0) & (expert < held)
    order = jnp.argsort(jnp.where(mine, expert, held), stable=True)
    sizes = jnp.bincount(jnp.where(mine, expert, held), length=held + 1)[:held].astype(jnp.int32)
    token = order // k
    rows = x_BTD.reshape(-1, D)[token]
    hidden = activation(grouped(rows, gate_EDF, sizes)) * grouped(rows, up_EDF, sizes)
    out = grouped(hidden, down_EFD, sizes)
    share = jnp.where(mine, weights_BTk.reshape(-1), 0.0)[order].astype(x_BTD.dtype)
    # Rows past the last group belong to other devices; what ragged_dot leaves there is unspecified.
    out = jnp.where((share != 0)[:, None], out * share[:, None], 0)
    return jnp.zeros((B * T, D), x_BTD.dtype).at[token].add(out).reshape(B, T, D)
