"""Vision transformers (arXiv:2010.11929) in the forms of SigLIP, CLIP and DINOv2, made of the
layers of every other model, so that adapters and quantized weights go into them by path.

Letters: I images, P patches and, where the form has one, a class token before them, E values of a
patch, D width of the encoder, T tokens of its layers, which are the patches.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from research.models import layers
from research.models.block import layer_specs
from research.models.config import Execution, ModelConfig
from research.models.context import make_context
from research.models.image_config import ImageConfig
from research.models.initial import initial
from research.models.spec import Spec, normal, zeros
from research.models.stack import run
from research.ops.einsum import add_bias, einsum
from research.parallel.placement import gather, merge_axes, partition_spec, reshard_to, split_axis
from research.scopes import scope
from research.tree import Tree


def tower(c: ImageConfig) -> ModelConfig:
    """The layers of an encoder of images as those of a model: an encoder that sees all of its
    patches, whose positions are a table of its own."""
    return ModelConfig(
        kind="encoder",
        vocab_size=1,
        layers=c.layers,
        d_model=c.d_model,
        heads=c.heads,
        kv_heads=c.heads,
        head_size=c.d_model // c.heads,
        d_ff=c.d_ff,
        max_length=c.grid**2 + c.features.class_token,
        position="learned",
        norm="layer",
        norm_eps=c.features.norm_eps,
        activation=c.features.activation,
        gated=False,
        attention_bias="all",
        mlp_bias=True,
        layer_scale=c.features.layer_scale,
        init="plain",
    )


def vit_specs(c: ImageConfig) -> Tree:
    """`patch` [E, D], `positions` [P, D], `class` [1, D] and `input_norm` as the form has them, the
    stacked layers and `final_norm`. E runs over a patch's rows, columns and colours."""
    of, form = tower(c), c.features
    values = c.patch**2 * 3
    specs = {
        "patch": {"kernel": Spec((values, c.d_model), ("position", "embed"), normal(values**-0.5))},
        "positions": Spec((of.max_length, c.d_model), ("position", "embed"), normal(0.02)),
        "layers": layer_specs(of, initial(of), c.layers, cross=False),
        "final_norm": layers.norm_specs(of),
    }
    if form.patch_bias:
        specs["patch"]["bias"] = Spec((c.d_model,), ("vector",), zeros)
    if form.class_token:
        specs["class"] = Spec((1, c.d_model), ("position", "embed"), normal(0.02))
    if form.input_norm:
        specs["input_norm"] = layers.norm_specs(of)
    return specs


@scope("encoder")
def encode(
    p: Tree, images_IhwC: jax.Array, c: ImageConfig, execution: Execution, dtype: jnp.dtype
) -> jax.Array:
    """States [I, P, D] of images [I, size, size, 3] before the last norm where `read_before` layers
    are left out, else behind it. Pixels are 0..255 as integers, or floats normalised already."""
    of, form = tower(c), c.features
    x_ITE = patches(normalised(images_IhwC, c), c).astype(dtype)
    x_ITD = einsum("ITE,ED->ITD", x_ITE, p["patch"]["kernel"])
    if "bias" in p["patch"]:
        x_ITD = add_bias(x_ITD, p["patch"]["bias"])
    if form.class_token:
        class_1TD = gather(p["class"]).astype(dtype)[None]
        first_ITD = jnp.broadcast_to(class_1TD, (len(x_ITD), 1, c.d_model))
        x_ITD = jnp.concatenate([reshard_to(first_ITD, partition_spec(x_ITD)), x_ITD], axis=1)
    x_ITD = x_ITD + gather(p["positions"]).astype(dtype)[None]
    if form.input_norm:
        x_ITD = layers.norm(p["input_norm"], x_ITD, of)
    # Every patch sees all of its image, which has no padding.
    places_1T = jnp.arange(x_ITD.shape[1], dtype=jnp.int32)[None]
    context = make_context(of, rows_of(places_1T, x_ITD), None, causal=False)
    kept, p_layers = c.layers - c.read_before, p["layers"]
    if c.read_before:
        whole = isinstance(p_layers, tuple)
        p_layers = p_layers[:kept] if whole else jax.tree.map(lambda w: w[:kept], p_layers)
    # A kernel that is named serves the texts; patches take the fastest that serves them.
    how = replace(execution, attention="auto")
    x_ITD, _, _ = run(p_layers, x_ITD, replace(of, layers=kept), how, context)
    return x_ITD if c.read_before else layers.norm(p["final_norm"], x_ITD, of)


def rows_of(places_1T: jax.Array, x_ITD: jax.Array) -> jax.Array:
    """The same numbers for each image, placed as its states are."""
    places_IT = jnp.broadcast_to(places_1T, x_ITD.shape[:2])
    place = partition_spec(x_ITD)
    return reshard_to(places_IT, place and PartitionSpec(*place[:2]))


def normalised(images_IhwC: jax.Array, c: ImageConfig) -> jax.Array:
    """Pixels float32 with the mean and deviation of the form; floats unchanged."""
    if jnp.issubdtype(images_IhwC.dtype, jnp.floating):
        return images_IhwC.astype(jnp.float32)
    mean, std = (np.float32(x)[None, None, None] for x in (c.features.mean, c.features.std))
    return (images_IhwC.astype(jnp.float32) / 255 - mean) / std


def patches(images_IhwC: jax.Array, c: ImageConfig) -> jax.Array:
    """The patches of images, row by row, [I, P, E]: E has the rows of a patch, their pixels and
    the three colours of these."""
    # I h w C to I n n' p p' C to I (n n') (p p' C), step by step: each keeps the places on a mesh.
    x = split_axis(split_axis(images_IhwC, 1, c.grid), 3, c.grid)
    x = merge_axes(jnp.swapaxes(x, 2, 3), 1)
    return merge_axes(merge_axes(x, 2), 2)
