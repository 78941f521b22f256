"""How an encoder hears: log-mel frames through two convolutions, and sinusoids for their places
(Whisper, arXiv:2212.04356, section 2.2).

Letters: B sounds, F log-mel frames, m bands of a frame, E values that a kernel sees, S states, two
frames each, D model.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from research.models import layers
from research.models.config import ModelConfig
from research.models.spec import Spec, normal, zeros
from research.ops.einsum import add_bias, einsum
from research.parallel.placement import partition_spec, reshard_to
from research.precision import Precision
from research.tree import Tree

# Frames under a kernel, of both convolutions.
WIDTH = 3


def sound_specs(mels: int, d_model: int) -> Tree:
    """Two convolutions as matrices over the values of three frames, one after the other: `first`
    [3 m, D] and `second` [3 D, D], each a kernel and a bias [D]."""
    sizes = {"first": WIDTH * mels, "second": WIDTH * d_model}
    return {
        name: {
            "kernel": Spec((size, d_model), ("position", "embed"), normal(size**-0.5)),
            "bias": Spec((d_model,), ("vector",), zeros),
        }
        for name, size in sizes.items()
    }


def check_mel(c: ModelConfig, batch: Mapping[str, jax.Array]) -> None:
    """ValueError unless the batch has "mel" [B, frames, mels]."""
    wanted = f'"mel" [rows, {c.frames}, {c.mels}]'
    if "mel" not in batch:
        raise ValueError(
            f"the model's encoder reads sound (model.mels={c.mels}) and the batch has none; give "
            f"{wanted}, as of `research.data.media.mel`"
        )
    shape = batch["mel"].shape
    if tuple(shape[1:]) != (c.frames, c.mels):
        raise ValueError(f"the sound has the shape {list(shape)}; wanted {wanted}")


def states(
    p_encoder: Tree,
    batch: Mapping[str, jax.Array],
    c: ModelConfig,
    precision: Precision,
    key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(input states [B, F / 2, D] of the encoder's layers, their "positions" and "segments") of
    the batch's "mel" [B, F, m]; dropout where a key is given. ValueError as `check_mel`."""
    check_mel(c, batch)
    x_BSD = heard(p_encoder["sound"], batch["mel"], precision.compute_dtype)
    place = partition_spec(x_BSD)
    numbers_1S = jnp.arange(x_BSD.shape[1], dtype=jnp.int32)[None]
    positions_BS = jnp.broadcast_to(numbers_1S, x_BSD.shape[:2])
    positions_BS = reshard_to(positions_BS, place and PartitionSpec(*place[:2]))
    # The whole window is one text, silence at its end included: Whisper was trained so.
    inputs = {"positions": positions_BS, "segments": jnp.ones_like(positions_BS)}
    # The half of the key that embeddings of texts take.
    return layers.dropout(
        x_BSD, c.dropout, None if key is None else jax.random.split(key)[0]
    ), inputs


def heard(p: Tree, mel_BFm: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Log-mel frames through both convolutions, with the sinusoids of their places added,
    [B, F / 2, D]."""
    x_BFD = _convolved(p["first"], mel_BFm.astype(dtype), 1)
    x_BSD = _convolved(p["second"], x_BFD, 2)
    return x_BSD + jnp.asarray(sinusoids(*x_BSD.shape[1:]), dtype)[None]


def sinusoids(length: int, d_model: int) -> np.ndarray:
    """Sines in the first half of D, cosines in the second, float32 [length, D]. Periods go from
    2 pi to 20,000 pi with both ends, other than those of arXiv:1706.03762.

    >>> sinusoids(2, 4).round(4).tolist()
    [[0.0, 0.0, 1.0, 1.0], [0.8415, 0.0001, 0.5403, 1.0]]
    """
    half = d_model // 2
    rates = 10000.0 ** (-np.arange(half) / (half - 1))
    angles = np.arange(length)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def _convolved(p: Tree, x_BFm: jax.Array, stride: int) -> jax.Array:
    """GELU of a convolution over three frames, every `stride`-th, with a frame of zeros at each
    end."""
    padded = jnp.pad(x_BFm, ((0, 0), (1, 1), (0, 0)))
    count = x_BFm.shape[1] // stride
    seen = [padded[:, at : at + stride * (count - 1) + 1 : stride] for at in range(WIDTH)]
    y_BFD = einsum("BFE,ED->BFD", jnp.concatenate(seen, axis=2), p["kernel"])
    return jax.nn.gelu(add_bias(y_BFD, p["bias"]), approximate=False)
