"""LLaVA 1.5 (arXiv:2310.03744) in Hugging Face's names: CLIP's encoder read before its last layer,
two layers with GELU, LLaMA's or a relative's decoder, in which soft tokens see their past alone."""

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from research.interop.huggingface.families import llama, vision
from research.interop.huggingface.families.fields import index, refuse
from research.interop.storage.family import Family
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig
from research.models.image_config import ImageConfig

# What published files leave out: transformers' defaults of its class of LLaMA.
_TEXT = {"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096}
_TEXT |= {"intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
_TEXT |= {"max_position_embeddings": 2048}
_FORMS = {"clip_vision_model": "clip", "siglip_vision_model": "siglip"}


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json describes. ValueError for settings that our layers do not
    compute."""
    kind = vision.section(values, "vision_config").get("model_type", "clip_vision_model")
    if kind not in _FORMS:
        raise ValueError(
            f"config.json has vision_config.model_type={kind!r}; there are {', '.join(_FORMS)}"
        )
    refuse(values, projector_hidden_act="gelu", multimodal_projector_bias=True)
    # "default" drops the class token, "full" keeps all; SigLIP has none to drop.
    strategy = "default" if kind == "clip_vision_model" else "full"
    refuse(
        {"vision_feature_select_strategy": "default", **values},
        vision_feature_select_strategy=strategy,
    )
    image = vision.read_encoder(values, kind, _FORMS[kind])
    image |= {"projector": "mlp", "read_before": _read_before(values, image["layers"])}
    # Published under the first name, written by newer releases under the second.
    token = index(values, "image_token_index", index(values, "image_token_id", 32000))
    decoder = vision.read_decoder(llama.FAMILY, values, _TEXT, tied=False)
    return replace(decoder, image=ImageConfig(**image, token=token))


def _read_before(values: Mapping[str, Any], layers: int) -> int:
    """How many layers at the end are not read, by `vision_feature_layer`. Layer -1 is the last
    layer's output, before the norm; we have the norm behind it."""
    layer = values.get("vision_feature_layer", -2)
    if type(layer) is not int or not -layers <= layer <= -2:
        raise ValueError(
            f"config.json has vision_feature_layer={layer!r}; wanted one of {-layers}..-2"
        )
    return -1 - layer


def serves(c: ModelConfig) -> bool:
    """True for a decoder of LLaMA's kind behind a projector of two layers."""
    return c.image.layers > 0 and c.image.projector == "mlp" and llama.serves(vision.text_of(c))


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json."""
    kind = next((kind for kind, form in _FORMS.items() if form == c.image.form), "")
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": c.image.token,
        "image_seq_length": c.image.tokens,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": -1 - c.image.read_before,
        "vision_feature_select_strategy": "default" if c.image.form == "clip" else "full",
        "tie_word_embeddings": c.tied,
        "text_config": llama.write_config(vision.text_of(c)),
        "vision_config": vision.write_encoder(c.image, kind or "clip_vision_model"),
    }


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """The tensors of LlavaForConditionalGeneration, as files have them."""
    ours, theirs = "image/projector", "multi_modal_projector"
    decoder = llama.rules(vision.text_of(c))
    return (
        *vision.decoder_rules(decoder, "language_model.model.", "language_model."),
        *vision.encoder_rules(c.image, "vision_tower."),
        Rule(f"{theirs}.linear_1.weight", f"{ours}/up", "D ie -> ie D"),
        Rule(f"{theirs}.linear_1.bias", f"{ours}/up_bias", "D -> D"),
        Rule(f"{theirs}.linear_2.weight", f"{ours}/down", "M D -> D M"),
        Rule(f"{theirs}.linear_2.bias", f"{ours}/down_bias", "D -> D"),
    )


FAMILY = Family(
    model_types=("llava",),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    renames=vision.RENAMES,
    unused=(*vision.UNUSED, vision.HEAD),
    copies=(("language_model.lm_head.weight", "embed/table"),),
)
