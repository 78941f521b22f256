"""Vectors of images and of texts that can be compared, as CLIP's and SigLIP's.

Letters: I images, B texts, T tokens, D elements of a vector.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from research.models.config import ModelConfig
from research.models.media import image_tokens
from research.models.model import Model
from research.models.soft import check_shape
from research.ops.einsum import contract
from research.tree import Tree


def image_vectors(model: Model, params: Tree, images_IhwC: jax.Array) -> jax.Array:
    """Of each image a vector of length 1, float32 [I, D]."""
    dtype = model.precision.compute_dtype
    rows_I1hwC = images_IhwC[:, None]
    one_I1D = image_tokens(params["image"], rows_I1hwC, model.config, model.execution, dtype)
    return _unit(one_I1D[:, 0])


def text_vectors(model: Model, params: Tree, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Of each text a vector of length 1, float32 [B, D]: what the classifier makes of the state of
    its last token or, in a model that sees texts whole, of the last place of the row."""
    hidden_BTD, _ = model.hidden(params, dict(batch))
    logits_BTD = model.class_logits(params, hidden_BTD, segments_BT=batch.get("segments"))
    return _unit(logits_BTD[:, -1])


def pair_scores(model: Model, params: Tree, batch: Mapping[str, jax.Array]) -> jax.Array:
    """The scores of all pairs of an image and a text, float32 [I, B]: cos * exp(scale) + bias by
    the model's own two numbers. The batch has "images" [I, size, size, 3] beside the texts."""
    texts = {name: x for name, x in batch.items() if name != "images"}
    images_ID = image_vectors(model, params, batch["images"])
    cos_IB = contract("ID,BD->IB", images_ID, text_vectors(model, params, texts))
    p = params["image"]["projector"]
    scores_IB = cos_IB * jnp.exp(p["logit_scale"].astype(jnp.float32))[None]
    return scores_IB + p["logit_bias"].astype(jnp.float32)[None] if "logit_bias" in p else scores_IB


def check_pairs(c: ModelConfig, shape: Sequence[int]) -> None:
    """ValueError unless the model has vectors of both, and images are [I, size, size, 3]."""
    if not c.image.pools or not c.labels:
        raise ValueError(
            "the model has no vectors of images and texts to compare, as CLIP and SigLIP have; use "
            "logits(), or another checkpoint"
        )
    check_shape(c, (1, *shape))


def _unit(x_BD: jax.Array) -> jax.Array:
    x_BD = x_BD.astype(jnp.float32)
    return x_BD / jnp.linalg.norm(x_BD, axis=-1, keepdims=True)
