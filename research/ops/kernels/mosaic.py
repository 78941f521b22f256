"""Attention on Hopper and datacenter Blackwell cards: tokamax's kernels in Pallas Mosaic GPU.

They take a first visible key for each query instead of a mask. Documents of a packed row are
adjacent, so with a causal mask that one number says all: a query sees the keys from the beginning
of its document, or of its window, to itself. No array of [T, T] is made, and blocks of keys before
the first visible one are skipped in the forward pass. The backward pass of this version masks them
and does not skip them.

Measured on one H100, 32 query and 8 key heads of 128, bfloat16, 2 rows of 8,192 tokens, forward and
backward (forward) in ms, against 26.9 (3.9) of `flash`: one document a row 8.6 (2.0), 8 documents
7.2 (0.47), a window of 4,096 8.7 (1.6), a window of 1,024 7.4 (0.80). Outputs and gradients are
within 0.0035 of float32's, relative, as bfloat16 itself is. On Blackwell nothing was timed.

This file alone imports tokamax, which the extra [kernels] brings on Python 3.12 and newer. Its pin
is exact: `Mask` is no public name, and its fields have changed between versions.
"""

import functools
import importlib.util
import logging
from dataclasses import dataclass
from importlib.metadata import version

import jax
import jax.numpy as jnp
from jax import lax

from research.devices.backend import card_capability, card_kind
from research.devices.table import DEVICES
from research.ops.kernels import visible_share as share
from research.ops.kernels.whole_rows import on_each_device, split_rows, wide_numbers

PLATFORM = "gpu"
SOFT_CAP = False  # the kernel has one, which was neither timed nor compared on a card
SINKS = False
TOKAMAX = "0.0.17"  # as in setup.cfg
JAX = (0, 11)  # the oldest that this tokamax works with
HEAD = 256  # the largest head that compiles
BLOCK_Q, BLOCK_K = 128, 128  # tiles of the kernel's own choice, for counting FLOPs


def refusal(q_BTNH: jax.Array, k_BSKH: jax.Array, visibility) -> str | None:
    """Why the kernel cannot serve the case and what to set, or None where it can."""
    capability = card_capability()
    if capability is None or capability[0] not in (9, 10):
        return f"{card_kind() or 'the card'} is neither of Hopper nor of datacenter Blackwell"
    if reason := _missing():
        return reason
    if not visibility.packed or not visibility.causal:
        return (
            "it serves causal attention within packed rows; decode, cross-attend and encode with "
            "'xla'"
        )
    if reason := split_rows(q_BTNH) or wide_numbers(q_BTNH):
        return reason
    if q_BTNH.shape[3] % 8 or q_BTNH.shape[3] > HEAD:
        return f"a head of {q_BTNH.shape[3]} must be a multiple of 8 up to {HEAD}"
    return None


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    visibility,
    scale: float,
    softcap: float = 0.0,
) -> jax.Array:
    """`research.ops.attention.attend` by this kernel, [B, T, N, H], where `refusal` is None."""
    rows = functools.partial(_rows, scale=scale, window=visibility.window)
    return on_each_device(rows, q_BTNH, k_BSKH, v_BSKH, visibility.q_segments_BT)


def first_keys(segments_BT: jax.Array, window: int) -> jax.Array:
    """The first key that each token of packed rows sees under a causal mask, int32 [B, T]: the
    beginning of its document, or with a `window` the token `window` - 1 before it."""
    at_1T = jnp.arange(segments_BT.shape[1], dtype=jnp.int32)[None]
    begins_BT = segments_BT != jnp.roll(segments_BT, 1, axis=1)
    # Token 0 begins whatever it is in; jnp.roll compares it with the last one.
    first_BT = lax.cummax(jnp.where(begins_BT, at_1T, 0), axis=1)
    return jnp.maximum(first_BT, at_1T - (window - 1)) if window else first_BT


def _rows(q_BTNH, k_BSKH, v_BSKH, segments_BT, *, scale: float, window: int) -> jax.Array:
    """The kernel on a device's part."""
    from tokamax._src.ops.attention.base import Mask
    from tokamax._src.ops.attention.pallas_mosaic_gpu import PallasMosaicGpuFlashAttention

    T = -(-q_BTNH.shape[1] // BLOCK_Q) * BLOCK_Q  # for counting alone: the kernel takes any length
    # `is_causal` and no `k_end`: with both given, the backward pass loses its causal skipping.
    mask = Mask(k_start=first_keys(segments_BT, window)[:, None], is_causal=True)
    forward, backward = (
        share.visited(T, T, BLOCK_Q, BLOCK_K, causal=True, window=w) for w in (window, 0)
    )
    _set_up_tokamax()
    with share.scope(forward=forward, backward=backward):
        kernel = PallasMosaicGpuFlashAttention()
        return kernel(q_BTNH, k_BSKH, v_BSKH, logits_scale=scale, mask=mask)


@dataclass(frozen=True)
class _Card:
    """The facts of an absent card that tokamax asks of a `jax.Device`."""

    device_kind: str
    compute_capability: str
    core_count: int
    platform: str = "gpu"


@functools.cache
def _set_up_tokamax() -> None:
    """Lets tokamax, which chooses its kernel by the default device, ask for the mesh's card where
    this machine has no GPU: programs are then compiled for one that is not here. The backward pass
    is traced long after `attend` has returned, so the answer stays changed. Keeps it silent, too.
    """
    from jax.extend import backend

    default_device = backend.get_default_device

    def _card():
        capability, device = card_capability(), DEVICES.get(card_kind())
        if capability is None or device is None or device.processors is None:
            return default_device()
        return _Card(device.kind, ".".join(map(str, capability)), device.processors.cores)

    if jax.default_backend() != "gpu":
        backend.get_default_device = _card
    # It warns for every shape that its authors have not tuned, among them all that were timed here.
    logging.getLogger("absl").addFilter(
        lambda said: "Autotuning cache miss" not in said.getMessage()
    )


@functools.cache
def _missing() -> str | None:
    """What the installation lacks for the kernel and how to get it; None where all is there."""
    if jax.__version_info__[:2] < JAX:
        wanted = ".".join(map(str, JAX))
        return (
            f"it wants JAX {wanted} or newer and this is {jax.__version__}; "
            "install '.[cuda]' under Python 3.12 or newer"
        )
    if importlib.util.find_spec("tokamax") is None:
        return "tokamax is not installed; pip install '.[kernels]' under Python 3.12 or newer"
    if version("tokamax") != TOKAMAX:
        return f"tokamax is {version('tokamax')} and {TOKAMAX} is wanted; pip install '.[kernels]'"
    return None
