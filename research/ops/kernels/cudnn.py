"""Attention by NVIDIA's cuDNN, through JAX's public function, where a row is one document.

Measured on one H100, 32 query and 8 key heads of 128, bfloat16, 2 rows of 8,192 tokens, forward and
backward (forward) in ms: 7.7 (2.1), against 8.6 (2.0) of `mosaic` and 26.9 (3.9) of `flash`; one
row of 2,048 tokens 0.62 (0.25) against 1.06 (0.30) of `flash`. Elsewhere it was not timed here, and
others report that it loses to flash attention on an A100.

cuDNN can also take the offsets of the documents of packed rows, through a private function of JAX.
With two rows or more that call is silently wrong up to JAX 0.11.2, the newest that was tried: its
output is off by half and its gradients are NaN. It is never made here. Nor is a mask given: a mask
becomes an array of [T, T], and cuDNN's gradients with one can be NaN.
"""

import functools

import jax
import jax.numpy as jnp

from research.devices.backend import card_capability, card_kind
from research.ops.kernels.whole_rows import on_each_device, split_rows, wide_numbers

PLATFORM = "gpu"
SOFT_CAP = False  # it has none
HEADS = {8: 128, 9: 256, 10: 256}  # the largest head by the card's major compute capability
TILE = 128  # lengths are filled up to a multiple: gradients can be NaN for T % 128 = 64


def refusal(q_BTNH: jax.Array, k_BSKH: jax.Array, visibility) -> str | None:
    """Why cuDNN cannot serve the case and what to set, or None where it can."""
    capability, H = card_capability(), q_BTNH.shape[3]
    if capability is None or capability[0] not in HEADS:
        return f"{card_kind() or 'the card'} is none that it has attention for"
    if not visibility.single:
        return (
            "rows may hold several documents, which it keeps apart in one row only; "
            "give batches without 'segments'"
        )
    if reason := split_rows(q_BTNH) or wide_numbers(q_BTNH):
        return reason
    if H % 8 or H > HEADS[capability[0]]:
        return f"a head of {H} must be a multiple of 8 up to {HEADS[capability[0]]}"
    return None


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    visibility,
    scale: float,
    softcap: float = 0.0,
    *,
    implementation: str = "cudnn",
) -> jax.Array:
    """`research.ops.attention.attend` by cuDNN, [B, T, N, H], where `refusal` is None.
    `implementation` is that of `jax.nn.dot_product_attention`, with which a test can run it."""
    rows = functools.partial(
        _rows,
        scale=scale,
        causal=visibility.causal,
        window=visibility.window,
        implementation=implementation,
    )
    return on_each_device(rows, q_BTNH, k_BSKH, v_BSKH)


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
