"""The vectors by which pictures and texts are compared, of a decoder with an encoder of images."""

import jax
import jax.numpy as jnp

from research.models.model import Model
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
    """Float32 [B, D] of length 1, the state of each row's last token."""
    hidden_BTD, _ = model.hidden(params, text, key)
    last_B1D = model.pooled(params, hidden_BTD, text["segments"])
    return _unit(jnp.sum(last_B1D.astype(jnp.float32), axis=1))


def _unit(x_BD: jax.Array) -> jax.Array:
    return x_BD / jnp.maximum(jnp.linalg.norm(x_BD, axis=-1, keepdims=True), 1e-6)
