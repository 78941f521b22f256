"""Attention by NVIDIA's cuDNN, where a row is one document or holds a known number of them.

Rows of one document go through JAX's public function. Measured on one H100, 32 query and 8 key
heads of 128, bfloat16, 2 rows of 8,192 tokens, forward and backward (forward) in ms: 7.7 (2.1),
against 8.6 (2.0) of `mosaic` and 26.9 (3.9) of `flash`; one row of 2,048 tokens 0.62 (0.25) against
1.06 (0.30) of `flash`. Elsewhere it was not timed here, and others report that it loses to flash
attention on an A100.

Packed rows are joined into one, of which cuDNN is told where the documents lie, by a private
function of JAX: 2.5 (0.57) ms for 8 documents a row against 7.2 (0.47) of `mosaic`. Its time grows
with the number of documents that a row may hold: with room for 64 it takes 7.0, as `mosaic` does,
and one document in such room 13.3. With two rows or more that call is silently wrong up to JAX
0.11.2, the newest that was tried: its output is off by half and its gradients are NaN. So it is
made for one row alone. A mask is never given: it becomes an array of [T, T], and cuDNN's gradients
with one can be NaN.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from research.devices.backend import card_capability, card_kind
from research.ops.kernels.documents import joined
from research.ops.kernels.whole_rows import on_each_device, split_rows, wide_numbers

PLATFORM = "gpu"
SOFT_CAP = False  # it has none
SINKS = False  # nor these
HEADS = {8: 128, 9: 256, 10: 256}  # the largest head by the card's major compute capability
TILE = 128  # lengths are filled up to a multiple: gradients can be NaN for T % 128 = 64
FEW = 8  # documents a row, up to which it was measured to be faster than `mosaic`
PACKED = (0, 11, 1)  # the first JAX whose packed call is right for shared key heads


def refusal(q_BTNH: jax.Array, k_BSKH: jax.Array, visibility) -> str | None:
    """Why cuDNN cannot serve the case and what to set, or None where it can."""
    capability, H = card_capability(), q_BTNH.shape[3]
    if capability is None or capability[0] not in HEADS:
        return f"{card_kind() or 'the card'} is none that it has attention for"
    if not visibility.single and (reason := _unpackable(capability, visibility)):
        return reason
    if reason := split_rows(q_BTNH) or wide_numbers(q_BTNH):
        return reason
    if H % 8 or H > HEADS[capability[0]]:
        return f"a head of {H} must be a multiple of 8 up to {HEADS[capability[0]]}"
    return _absent()


def has_few(visibility) -> bool:
    """Whether rows hold so few documents that cuDNN was measured to be the fastest."""
    return visibility.single or 0 < visibility.documents <= FEW


def _unpackable(capability: tuple[int, int], visibility) -> str | None:
    """Why it cannot serve rows of several documents and what to set; None where it can."""
    if not visibility.documents:
        return (
            "rows may hold any number of documents; set config.execution.documents to the most "
            "that one holds, or give batches without 'segments'"
        )
    if not visibility.packed or not visibility.causal:
        return "of several documents it serves causal attention within packed rows alone"
    if capability[0] < 9:
        return f"its packed rows begin with Hopper and this is {card_kind()}"
    if jax.__version_info__ < PACKED:
        wanted = ".".join(map(str, PACKED))
        return f"its packed rows want JAX {wanted} or newer and this is {jax.__version__}"
    return None


def _absent() -> str | None:
    # cuDNN itself makes the program, and asks the card.
    if jax.default_backend() == "gpu":
        return None
    return f"it compiles only on a machine with the card, and there is no {card_kind()} here"


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    visibility,
    scale: float,
    softcap: float = 0.0,
    *,
    implementation: Any = "cudnn",
) -> jax.Array:
    """`research.ops.attention.attend` by cuDNN, [B, T, N, H], where `refusal` is None. With more
    documents in the rows of a device than `visibility.documents` allows, every output is NaN.

    With `implementation` a test runs it: that of `jax.nn.dot_product_attention`, or for packed rows
    a function in the place of JAX's private one.
    """
    named = dict(scale=scale, window=visibility.window, implementation=implementation)
    if not visibility.single:
        rows = functools.partial(_packed_rows, documents=visibility.documents, **named)
        return on_each_device(rows, q_BTNH, k_BSKH, v_BSKH, visibility.q_segments_BT)
    rows = functools.partial(_rows, causal=visibility.causal, **named)
    return on_each_device(rows, q_BTNH, k_BSKH, v_BSKH)


def _packed_rows(
    q_BTNH, k_BTKH, v_BTKH, segments_BT, *, scale, window, documents, implementation
) -> jax.Array:
    """cuDNN on a device's part, as one row of B x T tokens."""
    B, T, N, H = q_BTNH.shape
    # Room for one document would be the call for unpacked rows.
    slots, added = max(2, B * documents), -B * T % TILE
    edges, count = joined(segments_BT, slots)
    # What fills the row up belongs to its last document, as padding does.
    edges = jnp.where(edges == B * T, B * T + added, edges)[None]
    sizes = jnp.diff(edges)
    q, k, v = (
        jnp.pad(x.reshape(1, B * T, *x.shape[2:]), ((0, 0), (0, added), (0, 0), (0, 0)))
        for x in (q_BTNH, k_BTKH, v_BTKH)
    )
    attention, mask = _private() if implementation == "cudnn" else (implementation, None)
    out = attention(
        *(q, k, v),
        q_seqlen=sizes,
        kv_seqlen=sizes,
        q_offsets=edges,
        kv_offsets=edges,
        scale=scale,
        mask_type=mask,
        sliding_window_length=window or None,
    )
    # Documents without room would attend to each other, which nobody would notice.
    return jnp.where(count <= slots, out[:, : B * T].reshape(B, T, N, H), jnp.nan)


def _private() -> tuple[Any, Any]:
    """JAX's function for packed rows and its causal mask, which no public name has."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    return fused.dot_product_attention, fused.MaskType.PADDING_CAUSAL


def _rows(q_BTNH, k_BSKH, v_BSKH, *, scale, causal, window, implementation) -> jax.Array:
    """cuDNN on a device's part."""
    B, T = q_BTNH.shape[:2]
    added = -T % TILE
    lengths = None
    if added:
        q_BTNH, k_BSKH, v_BSKH = (
            jnp.pad(x, ((0, 0), (0, added), (0, 0), (0, 0))) for x in (q_BTNH, k_BSKH, v_BSKH)
        )
        lengths = jnp.full((B,), T, jnp.int32)
    # Its window counts the keys before the query; ours counts the query itself too.
    sides = (window - 1, 0 if causal else window - 1) if window else None
    out_BTNH = jax.nn.dot_product_attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        scale=scale,
        is_causal=causal,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        local_window_size=sides,
        implementation=implementation,
    )
    return out_BTNH[:, :T]
