"""Splash attention on TPU: scores exist only block by block in on-chip memory, and hidden blocks
are skipped.

The kernel is JAX's (jax.experimental.pallas.ops.tpu.splash_attention). Its masks compare indices in
a row instead of positions. For packed rows that is the same (`Visibility.packed`): positions rise
by one within a segment, so indices and segments hide the same keys as positions and segments.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from research.ops.kernels import visible_share as share
from research.parallel.placement import local_shape, spec_entries

PLATFORM = "tpu"
SOFT_CAP = True
SINKS = True
RESIDUALS = "attention"  # checkpoint name of the output and log-sum-exp, for remat policies
LANES = 128  # of the vector unit; segment ids fill them, so no block can be shorter
# The largest that divides the length is taken. 512 compiles for v4 to 7x, also for float32 heads of
# 256.
BLOCKS = (512, 256, LANES)


def refusal(q_BTNH: jax.Array, k_BSKH: jax.Array, visibility) -> str | None:
    """Why the kernel cannot serve the case and what to set, or None where it can."""
    # A device has its own queries and, gathered, all keys of its rows.
    T, S, H = local_shape(q_BTNH)[1], k_BSKH.shape[1], q_BTNH.shape[3]
    if (visibility.causal or visibility.window) and not visibility.packed:
        return (
            "queries and keys are not one packed row and it knows only indices; "
            "decode over a cache with 'xla'"
        )
    if T % LANES or S % LANES:
        return (
            f"{T} queries a device and {S} keys must be multiples of {LANES}; "
            "set config.data.sequence_length"
        )
    if H % 8:
        return f"head_size={H} must be a multiple of 8; set config.model.head_size"
    if q_BTNH.dtype not in (jnp.float32, jnp.bfloat16):
        return f"{q_BTNH.dtype} queries must be float32 or bfloat16; set config.precision.compute"
    return None


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    visibility,
    scale: float,
    softcap: float = 0.0,
    sinks_N: jax.Array | None = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """`research.ops.attention.attend` by this kernel, [B, T, N, H], where `refusal` is None.
    `interpret` runs it on any device."""
    # The kernel has no scale, so queries are scaled. For head sizes such as 64 and 256 the scale is
    # a power of two, and this rounds nothing.
    q_BTNH = (q_BTNH.astype(jnp.float32) * scale).astype(q_BTNH.dtype)
    segments = visibility.q_segments_BT, visibility.k_segments_BS
    kernel = _kernel(q_BTNH, k_BSKH, visibility, softcap, interpret)
    # FLOPs of the blocks that it skips must not be counted, see `visible_share`.
    rows = functools.partial(
        _rows, shares=_shares(kernel, q_BTNH.shape[1], k_BSKH.shape[1], visibility)
    )
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return rows(kernel, q_BTNH, k_BSKH, v_BSKH, *segments, sinks_N)
    # Each device has its queries and all keys of its rows: keys are gathered over a split context.
    batch, length, heads, _ = spec_entries(q_BTNH)
    queries, keys = (
        PartitionSpec(batch, length, heads, None),
        PartitionSpec(batch, None, heads, None),
    )
    # The kernel asks for shapes of shards, which JAX has for no mesh that is mapped in part.
    free = mesh.update_axis_types(dict.fromkeys(mesh.manual_axes, AxisType.Explicit))
    specs = (
        kernel.manual_sharding_spec(NamedSharding(free, PartitionSpec(None, length))),
        queries,
        keys,
        keys,
        PartitionSpec(batch, length),
        PartitionSpec(batch, None),
        None if sinks_N is None else PartitionSpec(heads),
    )
    operands = jax.tree.map(
        jax.reshard, (kernel, q_BTNH, k_BSKH, v_BSKH, *segments, sinks_N), specs
    )
    # The kernel does not say over which mesh axes its results vary, so that check is off.
    return jax.shard_map(rows, in_specs=specs, out_specs=queries, check_vma=False)(*operands)


def _rows(
    kernel,
    q_BTNH,
    k_BSKH,
    v_BSKH,
    q_segments_BT,
    k_segments_BS,
    sinks_N=None,
    *,
    shares: dict[str, float],
) -> jax.Array:
    """The kernel over each row of a device's part of the batch; it wants heads before time."""
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    heads_first = (jnp.swapaxes(x, 1, 2) for x in (q_BTNH, k_BSKH, v_BSKH))
    with share.scope(**shares):
        # The rows of a batch share the sinks.
        out_BNTH = jax.vmap(kernel, in_axes=(0, 0, 0, 0, None))(
            *heads_first, SegmentIds(q_segments_BT, k_segments_BS), sinks_N
        )
    return jnp.swapaxes(out_BNTH, 1, 2)


def _shares(kernel, T: int, S: int, visibility) -> dict[str, float]:
    """The share of all pairs that each of its kernels multiplies, by the word in its name; the mean
    over devices."""
    sizes, rule = (
        kernel.kwargs["block_sizes"],
        dict(causal=visibility.causal, window=visibility.window),
    )
    blocks = {
        "fwd": (sizes.block_q, sizes.block_kv),
        "dkv": (sizes.block_q_dkv, sizes.block_kv_dkv),
    }
    if not sizes.use_fused_bwd_kernel:
        blocks["dq"] = sizes.block_q_dq, sizes.block_kv_dq
    return {word: share.visited(T, S, *block, **rule) for word, block in blocks.items()}


def _kernel(q_BTNH: jax.Array, k_BSKH: jax.Array, visibility, softcap: float, interpret: bool):
    """The kernel for a mask over indices. Its construction sorts blocks into hidden, partly visible
    and fully visible ones, for each device's share of the queries."""
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    local_T = local_shape(q_BTNH)[1]
    # Blocks divide a device's own queries; keys are there whole.
    block_q, block_kv = (
        next(block for block in BLOCKS if length % block == 0) for length in (local_T, S)
    )
    if visibility.window:
        # A window counts the query itself, the library's reach to either side does not.
        reach = visibility.window - 1
        mask = library.LocalMask((T, S), (reach, 0 if visibility.causal else reach), 0)
    else:
        mask = library.CausalMask((T, S)) if visibility.causal else library.FullMask((T, S))
    return library.make_splash_mha(
        # One mask stands for all heads: they share the rule.
        library.MultiHeadMask([mask]),
        head_shards=1,
        q_seq_shards=1
        if isinstance(mask, library.FullMask)
        else T // local_T,  # no blocks to sort where all are seen
        block_sizes=library.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_q_dq=block_q,
            block_kv_dq=block_kv,
        ),
        residual_checkpoint_name=RESIDUALS,
        attn_logits_soft_cap=softcap or None,
        interpret=interpret,
    )
