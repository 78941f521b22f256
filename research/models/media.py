"""What a batch's images and sounds become: the soft tokens of its texts.

Letters: B batch, M images or sounds of a row, I those of all rows, P patches, F log-mel frames, m
their bands, D model, S soft tokens of a row.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from research.models import projector, soft, sound_tokens, vit
from research.models.config import Execution, ModelConfig
from research.parallel.placement import gather_axis, merge_axes, split_axis
from research.tree import Tree


def soften(
    params: Tree,
    batch: Mapping[str, jax.Array],
    c: ModelConfig,
    execution: Execution,
    dtype: jnp.dtype,
) -> dict[str, jax.Array]:
    """The batch with its images and sounds encoded and projected: `soft.FIELDS` in their place.
    Unchanged without any. ValueError for those that the model cannot read."""
    batch = dict(batch)
    images_BMhwC, mel_BMFm = batch.pop("images", None), batch.pop("sounds", None)
    if images_BMhwC is not None:
        soft.check_shape(c, images_BMhwC.shape)
        batch["soft"] = image_tokens(params["image"], images_BMhwC, c, execution, dtype)
        batch["soft_at"] = soft.soft_index(batch["inputs"], c.image.token)
        blocks_BT = soft.image_blocks(c, batch)
        batch |= {} if blocks_BT is None else {"blocks": blocks_BT}
    if mel_BMFm is not None:
        soft.check_sound_shape(c, mel_BMFm.shape)
        of_sounds_BSD = sounds_tokens(params["sound"], mel_BMFm, c, execution, dtype)
        at_BT = soft.soft_index(batch["inputs"], c.sound.token)
        batch = soft.beside(batch, of_sounds_BSD, at_BT)
    return batch


def sounds_tokens(
    p_sound: Tree, mel_BMFm: jax.Array, c: ModelConfig, execution: Execution, dtype: jnp.dtype
) -> jax.Array:
    """The soft tokens [B, S, D] of the sounds of each row, one sound after the other."""
    mel_IFm = merge_axes(gather_axis(mel_BMFm, axis=1), 0)
    soft_IPD = sound_tokens.sound_tokens(p_sound, mel_IFm, c.sound, execution, dtype)
    return merge_axes(split_axis(soft_IPD, 0, len(mel_BMFm)), 1)


def image_tokens(
    p_image: Tree, images_BMhwC: jax.Array, c: ModelConfig, execution: Execution, dtype: jnp.dtype
) -> jax.Array:
    """The soft tokens [B, S, D] of the images of each row, one image after the other; each `frames`
    of them are one image, the mean of theirs."""
    # Images are rows to their encoder, whatever texts they stand in.
    images_IhwC = merge_axes(gather_axis(images_BMhwC, axis=1), 0)
    states_IPD = vit.encode(p_image, images_IhwC, c.image, execution, dtype)
    if c.image.pools:
        soft_IPD = projector.pool(p_image["projector"], states_IPD, c.image)
    else:
        patches_IPD = states_IPD[:, int(c.image.features.class_token) :]
        soft_IPD = projector.project(p_image["projector"], patches_IPD, c.image)
    soft_BMPD = split_axis(soft_IPD, 0, len(images_BMhwC))
    if c.image.frames > 1:
        frames_BMfPD = split_axis(soft_BMPD, 1, soft_BMPD.shape[1] // c.image.frames)
        soft_BMPD = jnp.mean(frames_BMfPD, axis=2, dtype=jnp.float32).astype(dtype)
    return merge_axes(soft_BMPD, 1)
