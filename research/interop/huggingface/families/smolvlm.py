"""SmolVLM and Idefics 3 (arXiv:2408.12637, arXiv:2504.05299) in Hugging Face's names: SigLIP's
encoder, a pixel shuffle and a layer, LLaMA's decoder, in which soft tokens see their past alone.

An image is one tile of the encoder's size; cutting large pictures into tiles is the work of whoever
prepares the text.
"""

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from research.interop.huggingface.families import llama, vision
from research.interop.huggingface.families.fields import index, integer
from research.interop.storage.family import Family
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig
from research.models.image_config import ImageConfig

_TEXT = {"model_type": "llama", "rms_norm_eps": 1e-5}
_TOKEN = {"idefics3": 128257, "smolvlm": 128257}  # the classes' defaults


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json describes. ValueError for settings that our layers do not
    compute."""
    kind = values["model_type"]
    image = vision.read_encoder(values, f"{kind}_vision", "siglip")
    image |= {"projector": "shuffle", "merge": integer(values, "scale_factor", 2)}
    image |= {"token": index(values, "image_token_id", _TOKEN[kind])}
    decoder = vision.read_decoder(llama.FAMILY, values, _TEXT, tied=False)
    return replace(decoder, image=ImageConfig(**image))


def serves(c: ModelConfig) -> bool:
    """True for a decoder of LLaMA's kind behind a pixel shuffle."""
    return c.image.layers > 0 and c.image.projector == "shuffle" and llama.serves(vision.text_of(c))


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json."""
    # Without its type: the two classes name it after themselves.
    encoder = vision.write_encoder(c.image, "smolvlm_vision")
    encoder.pop("model_type")
    return {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "model_type": "smolvlm",
        "scale_factor": c.image.merge,
        "image_token_id": c.image.token,
        "tie_word_embeddings": c.tied,
        "text_config": llama.write_config(vision.text_of(c)),
        "vision_config": encoder,
    }


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """The tensors of SmolVLMForConditionalGeneration."""
    decoder = vision.decoder_rules(llama.rules(vision.text_of(c)), "model.text_model.", "")
    proj = "model.connector.modality_projection.proj.weight"
    projector = Rule(proj, "image/projector/kernel", "D ie -> ie D")
    return (*decoder, *vision.encoder_rules(c.image, "model.vision_model."), projector)


FAMILY = Family(
    model_types=("smolvlm", "idefics3"),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    prefix="model.",
    unused=vision.UNUSED,
    copies=(("lm_head.weight", "embed/table"),),
    classes={"smolvlm": "SmolVLM", "idefics3": "Idefics3"},
)
