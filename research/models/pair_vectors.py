"""The vectors by which pictures and texts are compared, of a model with an encoder of images: of a
decoder its states, of CLIP and SigLIP what their own layers make of these.

Letters: I images, B texts, D elements of a vector.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from research.models.config import ModelConfig
from research.models.model import Model
from research.models.soft import check_shape
from research.ops.einsum import contract
from research.tree import Tree


def vectors(
    model: Model, params: Tree, batch: dict[str, jax.Array], key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """(of the pictures, of the texts) of a batch, float32 [B, D] of length 1."""
    text = {name: batch[name] for name in ("inputs", "segments", "positions")}
    images_BD = image_vectors(model, params, text, batch["images"])
    return images_BD, text_vectors(model, params, text, key)


def image_vectors(
    model: Model, params: Tree, text: dict[str, jax.Array], images_BMhwC: jax.Array
) -> jax.Array:
    """Float32 [B, D] of length 1, the mean of the soft tokens of each row's images; of the text
    only its shape matters."""
    soft_BSD = model.soften(params, {**text, "images": images_BMhwC})["soft"]
    return _unit(jnp.mean(soft_BSD.astype(jnp.float32), axis=1))


def text_vectors(
    model: Model, params: Tree, text: dict[str, jax.Array], key: jax.Array | None = None
) -> jax.Array:
    """Float32 [B, D] of length 1, the state of each row's last token; where the model projects
    texts, what its classifier makes of it or, in one that sees texts whole, of the last place."""
    hidden_BTD, _ = model.hidden(params, text, key)
    if projects(model.config):
        made_BTD = model.class_logits(params, hidden_BTD, segments_BT=text.get("segments"))
        return _unit(made_BTD[:, -1])
    last_B1D = model.pooled(params, hidden_BTD, text["segments"])
    return _unit(jnp.sum(last_B1D.astype(jnp.float32), axis=1))


def pair_scores(model: Model, params: Tree, batch: Mapping[str, jax.Array]) -> jax.Array:
    """The scores of all pairs of an image and a text, float32 [I, B]: cos * exp(scale) + bias by
    the model's own two numbers. The batch has "images" [I, size, size, 3] beside the texts."""
    texts = {name: x for name, x in batch.items() if name != "images"}
    none_I1 = jnp.zeros((batch["images"].shape[0], 1), jnp.int32)
    images_ID = image_vectors(model, params, {"inputs": none_I1}, batch["images"][:, None])
    cos_IB = contract("ID,BD->IB", images_ID, text_vectors(model, params, texts))
    p = params["image"]["projector"]
    scores_IB = cos_IB * jnp.exp(p["logit_scale"].astype(jnp.float32))[None]
    return scores_IB + p["logit_bias"].astype(jnp.float32)[None] if "logit_bias" in p else scores_IB


def projects(c: ModelConfig) -> bool:
    """True for a model whose classifier gives texts vectors of the images' width."""
    return c.image.pools and c.labels > 0


def check_pairs(c: ModelConfig, shape: Sequence[int]) -> None:
    """ValueError unless the model scores pairs, and images are [I, size, size, 3]."""
    if not projects(c):
        raise ValueError(
            "the model has no scores of images beside texts, as CLIP and SigLIP have; use "
            "logits(), or another checkpoint"
        )
    check_shape(c, (1, *shape))


def _unit(x_BD: jax.Array) -> jax.Array:
    return x_BD / jnp.maximum(jnp.linalg.norm(x_BD, axis=-1, keepdims=True), 1e-6)
