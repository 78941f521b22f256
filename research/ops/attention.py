"""Attention: one function, `attend`, over interchangeable implementations.

Which key a query sees follows from two numbers of each token, its segment and its position: the
segments are equal, under a causal mask the key's position is at most the query's, and with a window
the two are less than `window` apart. Packing, padding, caches and windows are cases of this rule;
blocks of soft tokens, which see themselves whole, are added to it.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.ops import blocked, chunked
from research.ops.distance import DistanceBias
from research.ops.einsum import contract
from research.ops.elementwise import soft_cap
from research.ops.sinks import softmax_beside
from research.parallel.placement import gather_axis, local_shape, spec_entries, split_axis
from research.scopes import scope

IMPLEMENTATIONS = ("auto", "mosaic", "cudnn", "flash", "splash", "xla")
# What is added to scores: nothing, an offset for each pair, or one for each distance.
Bias = jax.Array | DistanceBias | None
EVERYONE = -1  # the segment of keys that the queries of every segment see


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["q_positions_BT", "k_positions_BS", "q_segments_BT", "k_segments_BS", "blocks"],
    meta_fields=["causal", "window", "packed", "shared", "single", "documents"],
)
@dataclass(frozen=True)
class Visibility:
    """Which key each query sees. Segment 0 is padding or an empty cache slot.

    window   tokens that a query sees on a side, itself included; 0 is no limit. Without a causal
             mask it sees as many after it as before it
    packed   a promise that queries and keys are the same tokens, and that those of a segment are
             adjacent with positions rising by one. Masks over indices, the only ones that kernels
             have, then equal masks over positions (rows of padding aside)
    shared   some keys, those of a prefix, are in the segment EVERYONE; kernels cannot express it
    single   a promise that every row is one document without padding, known when the program is
             made
    documents   a promise that no packed row holds more documents than this; 0 promises nothing
    blocks   the first and the last position [B, T] of the block that a query is in: it sees all of
             it, whatever comes after and beyond the window, as soft tokens see their image. None
             for no blocks. Keys need no number: their positions tell
    """

    q_positions_BT: jax.Array
    k_positions_BS: jax.Array
    q_segments_BT: jax.Array
    k_segments_BS: jax.Array
    causal: bool
    window: int = 0
    packed: bool = False
    shared: bool = False
    single: bool = False
    documents: int = 0
    blocks: tuple[jax.Array, jax.Array] | None = None

    def mask_BTS(self) -> jax.Array:
        """True where the query may attend to the key."""
        # Padding queries (segment 0) see padding keys: such rows are never read, and stay finite.
        seen = self.q_segments_BT[:, :, None] == self.k_segments_BS[:, None, :]
        if self.shared:
            seen |= self.k_segments_BS[:, None, :] == EVERYONE
        of_text = seen
        distance = self.q_positions_BT[:, :, None] - self.k_positions_BS[:, None, :]
        if self.causal:
            seen = seen & (distance >= 0)
        if self.window:
            # Under a causal mask no distance is negative.
            seen = seen & ((distance if self.causal else jnp.abs(distance)) < self.window)
        if self.blocks is not None:
            first_BT1, last_BT1 = (x[:, :, None] for x in self.blocks)
            at_B1S = self.k_positions_BS[:, None, :]
            seen = seen | (of_text & (first_BT1 <= at_B1S) & (at_B1S <= last_BT1))
        return seen


@scope("scores")
def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    visibility: Visibility,
    *,
    scale: float,
    softcap: float = 0.0,
    bias: Bias = None,
    sinks_N: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """softmax(scale * q k + bias) v over the visible keys, [B, T, N, H]; N is a multiple of K
    (arXiv:2305.13245). With a `softcap` c each score s becomes c tanh(s / c) before the bias, which
    is [B or 1, N, T, S] or of distances. With `sinks` each head has one more score than keys, whose
    probability multiplies nothing (`research.ops.sinks`).

    `implementation` "auto" takes the fastest that supports the case on this device
    (`research.ops.kernels.attention.ORDER`), else XLA's. A named one raises `CannotServe`, a
    ValueError, for a case that it does not support. Under context parallelism queries stay split
    along T, and keys and values are gathered.
    """
    # Context parallelism gathers keys and values: with shared heads they are smaller than queries,
    # and each device then has all that its queries see.
    k_BSKH, v_BSKH = (_match_heads(q_BTNH, gather_axis(kv, axis=1)) for kv in (k_BSKH, v_BSKH))
    visibility = replace(
        visibility,
        k_positions_BS=gather_axis(visibility.k_positions_BS, axis=1),
        k_segments_BS=gather_axis(visibility.k_segments_BS, axis=1),
    )
    if implementation != "xla":
        from research.ops.kernels import attention as kernels

        case = q_BTNH, k_BSKH, visibility, bias, softcap, sinks_N is not None
        chosen = kernels.choose(implementation, *case)
        if chosen is not None:
            more = {} if sinks_N is None else {"sinks_N": sinks_N}
            return chosen(q_BTNH, k_BSKH, v_BSKH, visibility, scale, softcap, **more)
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    if chunked.serves(T, S, split=local_shape(q_BTNH)[1] < T):
        scoring = scale, bias, softcap, sinks_N
        return chunked.attend(reference, q_BTNH, k_BSKH, v_BSKH, visibility, *scoring)
    # The blocked form writes its own backward pass, in which a bias would need a gradient too.
    if bias is None and blocked.serves(q_BTNH, visibility):
        return blocked.attend(q_BTNH, k_BSKH, v_BSKH, visibility, scale, softcap, sinks_N)
    bias_BNTS = bias.dense() if isinstance(bias, DistanceBias) else bias
    return reference(q_BTNH, k_BSKH, v_BSKH, visibility, scale, bias_BNTS, softcap, sinks_N)


def reference(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    visibility: Visibility,
    scale: float,
    bias_BNTS: jax.Array | None = None,
    softcap: float = 0.0,
    sinks_N: jax.Array | None = None,
) -> jax.Array:
    """`attend` as two batched products with a float32 softmax between them; its scores take memory
    B * N * T * S."""
    # The definition that every kernel is tested against.
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    # Grouped queries: G = N / K query heads share each key head, so keys are not repeated.
    q_BTKGH = split_axis(q_BTNH, 2, K)
    scores_BKGTS = contract("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, dtype=jnp.float32) * scale
    scores_BKGTS = soft_cap(scores_BKGTS, softcap)
    if bias_BNTS is not None:
        scores_BKGTS += split_axis(bias_BNTS, 1, K)
    seen = visibility.mask_BTS()[:, None, None, :, :]
    # The least float instead of -inf: a row of padding, which sees no key, must not become NaN.
    scores_BKGTS = jnp.where(seen, scores_BKGTS, jnp.finfo(jnp.float32).min)
    # Narrowed after the softmax: the second product then runs in the activations' type.
    probs_BKGTS = softmax_beside(scores_BKGTS, sinks_N)[0].astype(q_BTNH.dtype)
    # The result keeps the axis order of a batched product; for another order XLA's CPU backend
    # would copy the probabilities first.
    out_BKGTH = contract("BKGTS,BSKH->BKGTH", probs_BKGTS, v_BSKH)
    return jnp.moveaxis(out_BKGTH, 3, 1).reshape(B, T, N, H)


def _match_heads(q_BTNH: jax.Array, k_BSKH: jax.Array) -> jax.Array:
    """Keys or values with their heads repeated to N, [B, S, N, H], where the mesh splits the query
    heads but not the fewer key heads; unchanged where it splits both alike."""
    if jax.sharding.get_abstract_mesh().empty or spec_entries(q_BTNH)[2] == spec_entries(k_BSKH)[2]:
        return k_BSKH
    # Each device has G = N / K queries for a key head. Repeated heads are consecutive, as grouped
    # queries are, so that head n of the result serves query n.
    repeats = q_BTNH.shape[2] // k_BSKH.shape[2]
    # Heads are gathered first: the K parts do not line up with those of N.
    batch, length, _, head = spec_entries(k_BSKH)
    gathered_BSKH = jax.reshard(k_BSKH, PartitionSpec(batch, length, None, head))
    return jax.reshard(
        jnp.repeat(gathered_BSKH, repeats, axis=2),
        PartitionSpec(batch, length, spec_entries(q_BTNH)[2], head),
    )
