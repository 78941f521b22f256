"""Soft tokens: vectors of an encoder that stand in a text like the embeddings of words.

A text has the id of a placeholder, `model.image.token` or `model.sound.token`, once for each soft
token. The batch has the images of each row in the order of their places, "images" [B, M, h, w, 3],
and its sounds as log-mel frames, "sounds" [B, M, F, m]. `soften` makes of them the fields that the
model reads:

    soft      [B, S, D]   the vectors of a row, one image after the other, then one sound ...
    soft_at   int [B, T]  which of them stands at a token, -1 for words
    blocks    int [B, T]  tokens that see each other whole have one number, 0 sees its past alone

or, where a call may have only a part of a block, instead of `blocks`

    spans     int [B, T, 2]  the first and the last position of the block that a token is in, its
                             own of a token in none

A run of equal numbers within a document is a block. Its tokens see all of it, before and behind
them, in layers with a window too; what else they see is what any token does. One number for the
text of a question and its image is the prefix of PaliGemma. Whoever has vectors of another kind
gives these fields itself. Positions count soft tokens like words (1-D); the positions in
time, height and width of Qwen 2-VL are refused when a checkpoint is opened.

Everything has the shape of the batch, whatever its texts hold: one gather, and no scatter.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from research.models.config import ModelConfig
from research.models.image_config import ImageConfig
from research.models.sound_config import SoundConfig
from research.parallel.placement import (
    gather_axis,
    partition_spec,
    reshard_to,
    spec_entries,
    unsharded,
)

# What `soften` adds to a batch.
FIELDS = ("soft", "soft_at", "blocks")


def soft_index(tokens_BT: jax.Array, token: int) -> jax.Array:
    """Which of its row's soft vectors each token is, int [B, T]: the number of placeholders before
    it, -1 for words."""
    # A mesh may split T, and a token counts those of all parts before it.
    here_BT = gather_axis(tokens_BT, axis=1) == token
    before_BT = jnp.cumsum(here_BT.astype(jnp.int32), axis=1) - 1
    return reshard_to(jnp.where(here_BT, before_BT, -1), partition_spec(tokens_BT))


def image_blocks(c: ModelConfig, batch: Mapping[str, jax.Array]) -> jax.Array | None:
    """The numbers "blocks" of a batch whose "soft_at" is of images: its own, else one for each
    image where the model sees images whole; None where all see their past alone. ValueError where
    only whoever made the text knows them."""
    if "blocks" in batch or c.image.attention == "causal":
        return batch.get("blocks")
    if c.image.attention == "prefix":
        raise ValueError(
            "the model sees all that stands before an answer whole (model.image.attention="
            "'prefix'), and the batch does not say where answers begin; give it \"blocks\" [B, T], "
            "1 before an answer and 0 in it"
        )
    # 0 for words, since their index is -1.
    return (batch["soft_at"] + c.image.tokens) // c.image.tokens


def beside(
    batch: Mapping[str, jax.Array], soft_BSD: jax.Array, at_BT: jax.Array
) -> dict[str, jax.Array]:
    """The batch with further vectors behind those that it has; `at_BT` is which of the further
    ones stands at a token, -1 for others."""
    if "soft" not in batch:
        return {**batch, "soft": soft_BSD, "soft_at": at_BT}
    before_BSD = gather_axis(batch["soft"], axis=1)
    at_BT = jnp.where(at_BT >= 0, at_BT + before_BSD.shape[1], batch["soft_at"])
    joined_BSD = jnp.concatenate([before_BSD, gather_axis(soft_BSD, axis=1)], axis=1)
    return {**batch, "soft": joined_BSD, "soft_at": at_BT}


def placed(x_BTD: jax.Array, soft_BSD: jax.Array, at_BT: jax.Array) -> jax.Array:
    """States [B, T, D] with the row's soft vector `at_BT` in the place of each token that is
    one."""
    soft_BSD = gather_axis(soft_BSD, axis=1).astype(x_BTD.dtype)
    rows_B1 = jnp.arange(at_BT.shape[0])[:, None]
    # The vector that a word reads is not used, and has no gradient of it.
    chosen_BT = jnp.maximum(at_BT, 0)
    if unsharded():
        soft_BTD = soft_BSD.at[rows_B1, chosen_BT].get(mode="clip")
    else:
        batch, length = spec_entries(at_BT)
        place = PartitionSpec(batch, length, None)
        # Each device reads its own rows, which a gather's sharding rules cannot say.
        soft_BTD = jax.shard_map(
            lambda soft, at: jnp.take_along_axis(soft, at[:, :, None], axis=1, mode="clip"),
            in_specs=(PartitionSpec(batch, None, None), PartitionSpec(batch, length)),
            out_specs=place,
        )(reshard_to(soft_BSD, PartitionSpec(batch, None, None)), chosen_BT)
        soft_BTD = reshard_to(soft_BTD, partition_spec(x_BTD))
    return jnp.where((at_BT >= 0)[:, :, None], soft_BTD, x_BTD)


def spans(
    blocks_BT: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The first and the last position, int [B, T] each, of the block that each token is in; its own
    of a token in none."""
    place = partition_spec(positions_BT)
    blocks_BT, segments_BT = (gather_axis(x, axis=1) for x in (blocks_BT, segments_BT))
    T = blocks_BT.shape[1]
    same_BT = (blocks_BT[:, 1:] == blocks_BT[:, :-1]) & (segments_BT[:, 1:] == segments_BT[:, :-1])
    edge_BT = jnp.pad(~same_BT, ((0, 0), (1, 0)), constant_values=True)
    ends_BT = jnp.pad(~same_BT, ((0, 0), (0, 1)), constant_values=True)
    at_1T = jnp.arange(T, dtype=jnp.int32)[None]
    first_BT = jax.lax.cummax(jnp.where(edge_BT, at_1T, 0), axis=1)
    last_BT = jax.lax.cummin(jnp.where(ends_BT, at_1T, T - 1), axis=1, reverse=True)
    alone_BT = blocks_BT == 0
    # Positions rise by one within a document, so distances of indices are those of positions.
    before_BT = reshard_to(jnp.where(alone_BT, 0, first_BT - at_1T), place)
    behind_BT = reshard_to(jnp.where(alone_BT, 0, last_BT - at_1T), place)
    return positions_BT + before_BT, positions_BT + behind_BT


def check_images(c: ModelConfig, tokens: np.ndarray, images: Any) -> None:
    """ValueError unless each row of token ids [B, T] has the places of exactly its images
    [B, M, h, w, 3] or [B, M', h, w, 3] with M' blocks of `frames` each; on the host."""
    if images is not None:
        check_shape(c, np.shape(images))
    _check_places(tokens, c.image, "images", images, c.image.frames)


def check_sounds(c: ModelConfig, tokens: np.ndarray, sounds: Any) -> None:
    """ValueError unless each row of token ids [B, T] has the places of exactly its sounds
    [B, M, F, m]; on the host."""
    if sounds is not None:
        check_sound_shape(c, np.shape(sounds))
    _check_places(tokens, c.sound, "sounds", sounds, 1)


def _check_places(
    tokens: np.ndarray, c: ImageConfig | SoundConfig, name: str, media: Any, frames: int
) -> None:
    counts = np.sum(np.asarray(tokens) == c.token, axis=1)
    if media is None:
        if counts.any():
            raise ValueError(
                f"row {int(np.argmax(counts > 0))} has {int(counts.max())} places of soft tokens "
                f"(id {c.token}) and no {name} were given"
            )
        return
    rows, given = np.shape(media)[:2]
    if rows != len(counts):
        raise ValueError(f"{name} are of {rows} rows, the texts are {len(counts)}")
    most = given // frames * c.tokens
    for row, count in enumerate(counts):
        if count % c.tokens or count > most:
            raise ValueError(
                f"row {row} has {count} places of soft tokens and {given} {name}, which make "
                f"{most}; each needs {c.tokens} places of id {c.token}"
            )


def check_shape(c: ModelConfig, shape: Sequence[int]) -> None:
    """ValueError for images that are not [B, M, size, size, 3], as many in a row as `frames` make
    blocks of, in a model that reads images."""
    if not c.image.layers:
        raise ValueError(
            "the model reads no images (model.image.layers=0); set model.image, or choose another "
            "checkpoint"
        )
    side, frames = c.image.size, c.image.frames
    if len(shape) != 5 or tuple(shape[2:]) != (side, side, 3):
        raise ValueError(
            f"images have the shape {list(shape)}; wanted [rows, images of a row, {side}, {side}, "
            "3], as the model was trained"
        )
    if shape[1] % frames:
        raise ValueError(
            f"{shape[1]} images of a row make no blocks of model.image.frames={frames}; give a "
            "multiple"
        )


def check_sound_shape(c: ModelConfig, shape: Sequence[int]) -> None:
    """ValueError for sounds that are not [B, M, frames, mels] of a model that reads them."""
    if not c.sound.layers:
        raise ValueError(
            "the model reads no sounds (model.sound.layers=0); set model.sound, or choose another "
            "checkpoint"
        )
    frames, mels = c.sound.frames, c.sound.mels
    if len(shape) != 4 or tuple(shape[2:]) != (frames, mels):
        raise ValueError(
            f"sounds have the shape {list(shape)}; wanted [rows, sounds of a row, {frames}, "
            f"{mels}], log-mel frames as the model was trained on"
        )


def with_media(
    c: ModelConfig, batch: Mapping[str, np.ndarray], images: Any, sounds: Any = None
) -> dict[str, np.ndarray]:
    """A batch of whole texts on the host with their images and sounds, all of whose tokens stand
    before an answer. ValueError as `check_images` and `check_sounds`."""
    fields = dict(batch)
    if c.image.in_texts or images is not None:
        check_images(c, batch["inputs"], images)
    if c.sound.layers or sounds is not None:
        check_sounds(c, batch["inputs"], sounds)
    if sounds is not None:
        fields["sounds"] = np.asarray(sounds)
    if images is not None:
        fields["images"] = np.asarray(images)
        if c.image.attention == "prefix":
            fields["blocks"] = np.ones_like(batch["inputs"])
    return fields


def on_words(c: ModelConfig, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
    """A batch with media whose targets are words alone: the place of a soft token is nothing that
    a model could predict, so its weight is 0. A batch without media as it is."""
    weights = batch.get("weights")
    for name, token in (("images", c.image.token), ("sounds", c.sound.token)):
        if name in batch:
            weights = weights * (batch["targets"] != token)
    return {**batch, "weights": weights} if weights is not None else batch
