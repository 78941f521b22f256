"""PaliGemma 1 and 2 and Gemma 3 with images in Hugging Face's names: SigLIP's encoder before
Gemma's decoder.

PaliGemma (arXiv:2407.07726) has a layer between them, and sees all that stands before an answer
whole. Gemma 3 (arXiv:2503.19786, section 2) has the mean of squares of patches, a norm and a layer,
and sees each image whole, also in layers with a window.
"""

from collections.abc import Mapping, Set
from dataclasses import replace
from math import isqrt
from typing import Any

from research.interop.huggingface.families import gemma, vision
from research.interop.huggingface.families.fields import index, integer
from research.interop.storage.family import Family
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig
from research.models.image_config import ImageConfig

_ENCODER = "siglip_vision_model"
# By model_type: the decoder's type, and what published files leave out, transformers' defaults.
_TEXT: dict[str, dict[str, Any]] = {
    "paligemma": {"model_type": "gemma"},
    "gemma3": {"model_type": "gemma3_text", "vocab_size": 262208, "num_attention_heads": 8},
}
_TOKENS = {"paligemma": 256000, "gemma3": 262144}


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json describes. ValueError for settings that our layers do not
    compute."""
    kind = values["model_type"]
    image = vision.read_encoder(values, _ENCODER, "siglip")
    # Published under the first name, written by newer releases under the second.
    token = index(values, "image_token_index", index(values, "image_token_id", _TOKENS[kind]))
    if kind == "gemma3":
        side = isqrt(tokens := integer(values, "mm_tokens_per_image", 256))
        grid = image["size"] // image["patch"]
        if side * side != tokens or grid % side:
            raise ValueError(
                f"config.json has mm_tokens_per_image={tokens}; wanted the square of a number that "
                f"divides the {grid} patches of a side"
            )
        image |= {"projector": "pool", "merge": grid // side, "attention": "block"}
    else:
        image |= {"projector": "linear", "attention": "prefix"}
    return replace(_read_decoder(values), image=ImageConfig(**image, token=token))


def _read_decoder(values: Mapping[str, Any]) -> ModelConfig:
    kind, text = values["model_type"], dict(vision.section(values, "text_config"))
    # PaliGemma's classes set this of Gemma's, to see what stands before an answer whole.
    if kind == "paligemma":
        text.pop("use_bidirectional_attention", None)
    wanted = {"gemma", "gemma2"} if kind == "paligemma" else {"gemma3_text"}
    if (found := text.get("model_type", _TEXT[kind]["model_type"])) not in wanted:
        raise ValueError(f"config.json has text_config.model_type={found!r} in a {kind}")
    sections = {**values, "text_config": text}
    return vision.read_decoder(gemma.FAMILY, sections, _TEXT[kind], tied=True)


def serves(c: ModelConfig) -> bool:
    """True for Gemma's decoders behind the projectors of the two."""
    projector = "pool" if c.query_norm else "linear"
    behind = c.image.layers > 0 and c.image.projector == projector
    return behind and gemma.serves(vision.text_of(c))


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json."""
    text = gemma.write_config(vision.text_of(c))
    values: dict[str, Any] = {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "image_token_index": c.image.token,
        "tie_word_embeddings": c.tied,
        "text_config": text,
        "vision_config": vision.write_encoder(c.image, _ENCODER) | {"vision_use_head": False},
    }
    if c.query_norm:
        values |= {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}
        return values | {"mm_tokens_per_image": c.image.tokens}
    # The layer's width stands in three places.
    values |= {"projection_dim": c.d_model, "hidden_size": c.d_model}
    values["vision_config"]["projection_dim"] = c.d_model
    text["num_image_tokens"] = c.image.tokens
    return values


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """The tensors of both classes, as files have them."""
    ours, theirs = "image/projector", "multi_modal_projector"
    decoder = gemma.rules(vision.text_of(c))
    shared = (
        *vision.decoder_rules(decoder, "language_model.model.", "language_model."),
        *vision.encoder_rules(c.image, "vision_tower."),
    )
    if c.query_norm:
        return (
            *shared,
            Rule(f"{theirs}.mm_input_projection_weight", f"{ours}/kernel", "ie D -> ie D"),
            Rule(f"{theirs}.mm_soft_emb_norm.weight", f"{ours}/norm/scale", "ie -> ie"),
        )
    return (
        *shared,
        Rule(f"{theirs}.linear.weight", f"{ours}/kernel", "D ie -> ie D"),
        Rule(f"{theirs}.linear.bias", f"{ours}/bias", "D -> D"),
    )


FAMILY = Family(
    model_types=("paligemma", "gemma3"),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    renames=vision.RENAMES,
    unused=(*vision.UNUSED, vision.HEAD),
    copies=(("language_model.lm_head.weight", "embed/table"),),
    norm_offset=1.0,
)
