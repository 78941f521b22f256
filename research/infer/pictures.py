"""Vectors of picture files and of texts, by a model that was trained to compare them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from research.data.media.images import read_image
from research.data.media.limits import BadMedia
from research.data.media.resize import resized
from research.data.tokenizers import Tokenizer
from research.models.model import Model
from research.models.pair_vectors import image_vectors, projects, text_vectors
from research.tree import Tree

_ROWS = 16  # of a batch: pictures of any number are computed by one program


def embed_images(model: Model, params: Tree, files: Sequence[Path]) -> np.ndarray:
    """A vector of length 1 for each file, float32 [files, D]. ValueError for a model without an
    encoder of images, and for a file that is no picture, by its name."""
    c = model.config.image
    if not c.layers:
        raise ValueError(
            "the model has no encoder of images; give --text, or a checkpoint that has one"
        )
    pixels = []
    for file in files:
        try:
            pixels.append(resized(read_image(file).pixels, c.size, c.form))
        except BadMedia as error:
            raise ValueError(f"--image={file}: {error}") from None
    width = model.config.labels if projects(model.config) else model.config.d_model
    found = [np.zeros((0, width), np.float32)]
    for first in range(0, len(pixels), _ROWS):
        part = np.stack(pixels[first : first + _ROWS])
        # Missing rows are black. A block of several frames shows one picture in all of them.
        rows = np.zeros((_ROWS, c.frames, *part.shape[1:]), np.uint8)
        rows[: len(part)] = part[:, None]
        found.append(np.asarray(_of_images(params, rows, model=model))[: len(part)])
    return np.concatenate(found)


def embed_names(
    model: Model, params: Tree, tokenizer: Tokenizer, texts: Sequence[str]
) -> np.ndarray:
    """A vector of length 1 for each text, float32 [texts, D], between the tokens that begin and
    end a text, as in training."""
    first, last = tokenizer.bos_id, tokenizer.eos_id
    ids = [
        [token for token in (first, *tokenizer.encode(text), last) if token is not None]
        for text in texts
    ]
    tokens, segments = np.zeros((2, len(ids), max(map(len, ids), default=1)), np.int32)
    if model.config.kind == "encoder":
        # SigLIP sees texts whole, of one length, and reads the state of the last place.
        tokens = np.full((len(ids), model.config.max_length), tokenizer.pad_id or 0, np.int32)
        segments = np.ones_like(tokens)
        ids = [one[: model.config.max_length] for one in ids]
    for row, one in enumerate(ids):
        tokens[row, : len(one)], segments[row, : len(one)] = one, 1
    return np.asarray(_of_texts(params, tokens, segments, model=model))


@partial(jax.jit, static_argnames="model")
def _of_images(params: Tree, images_BMhwC: jax.Array, *, model: Model) -> jax.Array:
    none_B1 = jnp.zeros((images_BMhwC.shape[0], 1), jnp.int32)
    text = {"inputs": none_B1, "segments": none_B1, "positions": none_B1}
    return image_vectors(model, params, text, images_BMhwC)


@partial(jax.jit, static_argnames="model")
def _of_texts(
    params: Tree, tokens_BT: jax.Array, segments_BT: jax.Array, *, model: Model
) -> jax.Array:
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None, :], tokens_BT.shape)
    text = {"inputs": tokens_BT, "segments": segments_BT, "positions": positions_BT}
    return text_vectors(model, params, text)
