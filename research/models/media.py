"""What a batch's images become: the soft tokens of its texts.

Letters: B batch, M images of a row, I images of all rows, P patches, D model, S soft tokens of a
row.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from research.models import projector, soft, vit
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
    """The batch with its images encoded and projected: `soft.FIELDS` in their place. Unchanged
    without images. ValueError for images that the model cannot read."""
    batch = dict(batch)
    images_BMhwC = batch.pop("images", None)
    if images_BMhwC is None:
        return batch
    soft.check_shape(c, images_BMhwC.shape)
    batch["soft"] = image_tokens(params["image"], images_BMhwC, c, execution, dtype)
    batch["soft_at"] = soft.soft_index(batch["inputs"], c.image.token)
    blocks_BT = soft.image_blocks(c, batch)
    return batch if blocks_BT is None else {**batch, "blocks": blocks_BT}


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
