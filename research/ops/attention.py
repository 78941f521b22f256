"""The attention seam: one function over interchangeable implementations.

Which key a query sees is decided by numbers that travel with the tokens, so packing, padding,
caches and windows are one rule: same segment, and under a causal mask a key position at most the
query's, and in a window less than `window` away.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.ops import blocked
from research.ops.einsum import contract
from research.ops.elementwise import soft_cap
from research.parallel.placement import gather_axis, spec_entries, split_axis

IMPLEMENTATIONS = ("auto", "xla", "splash", "flash")
EVERYONE = -1  # the segment of keys that the queries of every segment see


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["q_positions_BT", "k_positions_BS", "q_segments_BT", "k_segments_BS"],
    meta_fields=["causal", "window", "packed", "shared"],
)
@dataclass(frozen=True)
class Visibility:
    """Who sees whom. Segment 0 is padding (or an empty cache slot); `window` 0 is unlimited.

    `packed` is the maker's word that queries and keys are the same rows and that within a segment
    the tokens stand together, positions rising by one. Indices then hide what positions hide, all
    that kernels know; padding aside. `shared` says that some keys are of the segment EVERYONE, a
    prefix, which no kernel knows.
    """

    q_positions_BT: jax.Array
    k_positions_BS: jax.Array
    q_segments_BT: jax.Array
    k_segments_BS: jax.Array
    causal: bool
    window: int = 0
    packed: bool = False
    shared: bool = False

    def mask_BTS(self) -> jax.Array:
        """True where the query may attend to the key."""
        seen = self.q_segments_BT[:, :, None] == self.k_segments_BS[:, None, :]
        if self.shared:
            seen |= self.k_segments_BS[:, None, :] == EVERYONE
        distance = self.q_positions_BT[:, :, None] - self.k_positions_BS[:, None, :]
        if self.causal:
            seen &= distance >= 0
        if self.window:
            seen &= distance < self.window
        return seen


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    visibility: Visibility,
    *,
    scale: float,
    softcap: float = 0.0,
    bias_BNTS: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """softmax(scale * q k + bias) v over the visible keys, [B, T, N, H], N a multiple of K
    (arXiv:2305.13245). A `softcap` c makes c tanh(s / c) of each score s before the bias is added.

    `implementation` "auto" takes the best that serves the case on this backend: splash on TPU,
    flash on GPU, else XLA. A named one raises NotImplementedError for a case that it cannot serve.
    Under context parallelism keys and values are gathered over the context axis while queries stay
    split.
    """
    k_BSKH, v_BSKH = (_match_heads(q_BTNH, gather_axis(kv, axis=1)) for kv in (k_BSKH, v_BSKH))
    visibility = replace(
        visibility,
        k_positions_BS=gather_axis(visibility.k_positions_BS, axis=1),
        k_segments_BS=gather_axis(visibility.k_segments_BS, axis=1),
    )
    if implementation in ("auto", "splash", "flash"):
        from research.ops.kernels import attention as kernels

        chosen = kernels.choose(implementation, q_BTNH, k_BSKH, visibility, bias_BNTS, softcap)
        if chosen is not None:
            return chosen(q_BTNH, k_BSKH, v_BSKH, visibility, scale, softcap)
    if bias_BNTS is None and blocked.serves(q_BTNH, visibility):
        return blocked.attend(q_BTNH, k_BSKH, v_BSKH, visibility, scale, softcap)
    return reference(q_BTNH, k_BSKH, v_BSKH, visibility, scale, bias_BNTS, softcap)


def reference(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    visibility: Visibility,
    scale: float,
    bias_BNTS: jax.Array | None = None,
    softcap: float = 0.0,
) -> jax.Array:
    """Attention as two batched products with a float32 softmax between them; memory grows with T *
    S."""
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = split_axis(q_BTNH, 2, K)
    scores_BKGTS = contract("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, dtype=jnp.float32) * scale
    scores_BKGTS = soft_cap(scores_BKGTS, softcap)
    if bias_BNTS is not None:
        scores_BKGTS += split_axis(bias_BNTS, 1, K)
    seen = visibility.mask_BTS()[:, None, None, :, :]
    scores_BKGTS = jnp.where(seen, scores_BKGTS, jnp.finfo(jnp.float32).min)
    probs_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(q_BTNH.dtype)
    # In the product's own order: XLA's CPU backend then makes no copy of the probabilities to get
    # another.
    out_BKGTH = contract("BKGTS,BSKH->BKGTH", probs_BKGTS, v_BSKH)
    return jnp.moveaxis(out_BKGTH, 3, 1).reshape(B, T, N, H)


def _match_heads(q_BTNH: jax.Array, k_BSKH: jax.Array) -> jax.Array:
    """Keys repeated to the query's heads where those are split over more devices than there are key
    heads."""
    if jax.sharding.get_abstract_mesh().empty or spec_entries(q_BTNH)[2] == spec_entries(k_BSKH)[2]:
        return k_BSKH
    repeats = q_BTNH.shape[2] // k_BSKH.shape[2]
    batch, length, _, head = spec_entries(k_BSKH)
    whole = jax.reshard(k_BSKH, PartitionSpec(batch, length, None, head))
    return jax.reshard(
        jnp.repeat(whole, repeats, axis=2),
        PartitionSpec(batch, length, spec_entries(q_BTNH)[2], head),
    )
