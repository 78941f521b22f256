"""Flash attention on GPU (arXiv:2307.08691): scores live in a multiprocessor's registers, block by block.

The kernel is JAX's in Pallas Triton (jax.experimental.pallas.ops.gpu.attention), forward and backward. It knows positions
as indices of a row and has one row of segments for queries and keys alike, so it serves packed self-attention.
"""

import functools

import jax
from jax.sharding import PartitionSpec

from research.ops.einsum import local_shape, spec

PLATFORM = "gpu"
BLOCK = 128  # of queries and of keys in the kernel's default tiles, which must divide the length


def refusal(q_BTNH: jax.Array, k_BSKH: jax.Array, visibility) -> str | None:
    """Why the kernel cannot serve the case and what to set, or None where it can."""
    T = q_BTNH.shape[1]
    if not visibility.packed:
        return "queries and keys are not one packed row and it knows only indices; decode and cross-attend with 'xla'"
    if visibility.window:
        return f"it has no window and model.window={visibility.window}"
    if local_shape(q_BTNH)[1] != T:
        return "it wants whole rows of queries and the mesh splits them; set config.mesh without a context axis"
    if T % BLOCK:
        return f"{T} queries must be a multiple of {BLOCK}; set config.data.sequence_length"
    return None


def attend(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, visibility, scale: float, *, interpret: bool = False
) -> jax.Array:
    """The seam's attention, [B, T, N, H], where `refusal` is None. `interpret` runs the kernel on any device."""
    rows = functools.partial(_rows, scale=scale, causal=visibility.causal, interpret=interpret)
    if jax.sharding.get_abstract_mesh().empty:
        return rows(q_BTNH, k_BSKH, v_BSKH, visibility.k_segments_BS)
    batch, _, heads, _ = spec(q_BTNH)
    whole = PartitionSpec(batch, None, heads, None)
    specs = whole, whole, whole, PartitionSpec(batch, None)
    operands = map(jax.reshard, (q_BTNH, k_BSKH, v_BSKH, visibility.k_segments_BS), specs)
    # The kernel does not say over which mesh axes its results vary, so that check is off.
    return jax.shard_map(rows, in_specs=specs, out_specs=whole, check_vma=False)(*operands)


def _rows(q_BTNH, k_BTKH, v_BTKH, segments_BT, *, scale: float, causal: bool, interpret: bool) -> jax.Array:
    """The kernel on a device's part. It wants a key head for each query head: the group is mapped over, not copied."""
    from jax.experimental.pallas.ops.gpu.attention import mha

    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    kernel = functools.partial(mha, sm_scale=scale, causal=causal, interpret=interpret)
    out_BTKGH = jax.vmap(kernel, in_axes=(3, None, None, None), out_axes=3)(
        q_BTNH.reshape(B, T, K, N // K, H), k_BTKH, v_BTKH, segments_BT
    )
    return out_BTKGH.reshape(B, T, N, H)
