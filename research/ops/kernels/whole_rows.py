"""What the GPU's attention kernels share: they want whole rows of queries, 16-bit ones or any.

Heads and rows of the batch are independent of each other and may lie on different devices; the
tokens of a row may not.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.parallel.placement import local_shape, spec_entries


def split_rows(q_BTNH: jax.Array) -> str | None:
    """Why a kernel of whole rows cannot serve these queries and what to set; None if it can."""
    if local_shape(q_BTNH)[1] == q_BTNH.shape[1]:
        return None
    return (
        "it wants whole rows of queries and the mesh splits them; "
        "set config.mesh without a context axis"
    )


def wide_numbers(q_BTNH: jax.Array) -> str | None:
    """Why a kernel of 16-bit numbers cannot serve these queries and what to set; None if it can."""
    if q_BTNH.dtype in (jnp.bfloat16, jnp.float16):
        return None
    return (
        f"{q_BTNH.dtype} queries must be bfloat16 or float16; "
        "set config.precision.compute to bfloat16"
    )


def on_each_device(
    rows: Callable[..., jax.Array],
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *segments: jax.Array,
) -> jax.Array:
    """`rows(q, k, v, *segments)`, [B, T, N, H], by each device for its rows of the batch and its
    heads. `segments` are arrays of a number a token, [B, T] or [B, S]."""
    operands = q_BTNH, k_BSKH, v_BSKH, *segments
    if jax.sharding.get_abstract_mesh().empty:
        return rows(*operands)
    batch, _, heads, _ = spec_entries(q_BTNH)
    by_head = PartitionSpec(batch, None, heads, None)
    specs = by_head, by_head, by_head, *(PartitionSpec(batch, None) for _ in segments)
    # Kernels do not say over which mesh axes their results vary, so that check is off.
    mapped = jax.shard_map(rows, in_specs=specs, out_specs=by_head, check_vma=False)
    return mapped(*map(jax.reshard, operands, specs))
