"""The parameter tree of a model, one `Spec` for each parameter."""

from dataclasses import replace

from research.models import embedding, heads, layers, projector, sound, sound_tokens, vit
from research.models.block import layer_specs
from research.models.config import ModelConfig, dense_config
from research.models.initial import initial
from research.tree import Tree


def parameter_specs(c: ModelConfig) -> Tree:
    """The parameters of a model with this config: embeddings, one or two stacks of layers with
    their final norms, and heads. First layers without experts are a stack of their own below
    "dense"; the encoder of images and its projector are below "image", those of sounds below
    "sound"."""
    start = initial(c)
    # Two stacks; only the decoder's has cross-attention.
    two = c.kind == "encoder_decoder"
    specs = {
        "embed": embedding.embed_specs(c, start),
        "layers": layer_specs(c, start, c.layers - c.dense_layers, cross=two),
    }
    if c.dense_layers:
        dense = dense_config(c)
        # Some initialisers depend on the depth, which is that of the whole model.
        of_depth = initial(replace(dense, layers=c.layers))
        dense_specs = layer_specs(dense, of_depth, dense.layers, cross=False)
        specs["dense"] = {"layers": dense_specs}
    if two:
        specs["encoder"] = {"layers": layer_specs(c, start, c.encoder_layers, cross=False)}
    if c.mels:
        specs["encoder"]["sound"] = sound.sound_specs(c.mels, c.d_model)
    # The decoder's stack lies at the root of the tree, the encoder's below "encoder".
    for stack in (specs, *([specs["encoder"]] if two else [])):
        if c.has_offsets:
            stack["relative"] = embedding.relative_specs(c, start)
        if not c.norm_after:
            stack["final_norm"] = layers.norm_specs(c)
    if c.image.layers:
        # Of vectors beside texts the width is what texts are projected to.
        width = c.labels if c.image.pools and c.labels else c.d_model
        projected = projector.projector_specs(c.image, width)
        specs["image"] = {**vit.vit_specs(c.image), "projector": projected}
    if c.sound.layers:
        specs["sound"] = sound_tokens.sound_tokens_specs(c.sound, c.d_model)
    specs |= heads.class_specs(c, start)
    head = heads.head_specs(c, start)
    return {**specs, "head": head} if head else specs
