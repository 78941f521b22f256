"""CLIP and SigLIP in Hugging Face's names: a text's and an image's vector, made to be near where
the two belong together.

CLIP (arXiv:2103.00020) reads a text from left to right and projects the state of its last token,
that of its end: pass a mask, or texts of one length. SigLIP (arXiv:2303.15343) sees a text whole,
padded to the length that it was trained with, and projects the state of the last place. A text's
projection is the model's classifier, whose labels are the elements of the vector.
"""

from collections.abc import Mapping, Set
from typing import Any

from research.interop.huggingface.families import vision
from research.interop.huggingface.families.fields import integer
from research.interop.storage.family import Family
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig
from research.models.image_config import FORMS, ImageConfig

# transformers' defaults of the classes of texts.
_TEXT: dict[str, dict[str, int]] = {
    "clip": {
        **{"vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048},
        **{"num_hidden_layers": 12, "num_attention_heads": 8, "max_position_embeddings": 77},
    },
    "siglip": {
        **{"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072},
        **{"num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 64},
    },
}


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json describes. ValueError for settings that our layers do not
    compute."""
    kind = values["model_type"]
    image = vision.read_encoder(values, f"{kind}_vision_model", kind)
    said = {**_TEXT[kind], **vision.section(values, "text_config")}
    vision.check_form(said, "text_config", kind)
    d_model, heads = integer(said, "hidden_size"), integer(said, "num_attention_heads")
    clip = kind == "clip"
    width = integer(values, "projection_dim", 512) if clip else 0
    return ModelConfig(
        kind="decoder" if clip else "encoder",
        vocab_size=integer(said, "vocab_size"),
        layers=integer(said, "num_hidden_layers"),
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_size=d_model // heads,
        d_ff=integer(said, "intermediate_size"),
        max_length=integer(said, "max_position_embeddings"),
        position="learned",
        norm="layer",
        norm_eps=FORMS[kind].norm_eps,
        activation=FORMS[kind].activation,
        gated=False,
        attention_bias="all",
        mlp_bias=True,
        tied=True,
        labels=width or integer(said, "projection_size", d_model),
        labels_over="text" if clip else "tokens",
        init="plain",
        image=ImageConfig(**image, projector="class" if clip else "attend"),
    )


def serves(c: ModelConfig) -> bool:
    """True for a model that makes one vector of an image and one of a text."""
    return c.image.layers > 0 and c.image.pools and c.labels > 0


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json."""
    kind = "clip" if c.image.projector == "class" else "siglip"
    name = {"clip": "CLIPModel", "siglip": "SiglipModel"}[kind]
    text = {
        "model_type": f"{kind}_text_model",
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "max_position_embeddings": c.max_length,
        **vision.write_form(kind),
    }
    encoder = vision.write_encoder(c.image, f"{kind}_vision_model")
    if kind == "clip":
        for section in (text, encoder):
            section["projection_dim"] = c.labels
    else:
        text["projection_size"] = c.labels
        encoder["vision_use_head"] = True
    values = {"architectures": [name], "model_type": kind}
    values |= {"text_config": text, "vision_config": encoder}
    return values | ({"projection_dim": c.labels} if kind == "clip" else {})


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """The tensors of CLIPModel and SiglipModel."""
    text, ours = "text_model.", "image/projector"
    layer = f"{text}encoder.layers.{{layer}}"
    shared = (
        Rule(f"{text}embeddings.token_embedding.weight", "embed/table", "V D -> V D"),
        Rule(f"{text}embeddings.position_embedding.weight", "embed/positions", "P D -> P D"),
        Rule(f"{text}final_layer_norm.weight", "final_norm/scale", "D -> D"),
        Rule(f"{text}final_layer_norm.bias", "final_norm/bias", "D -> D"),
        *vision.layer_rules(layer, "layers", {"id": "D", "in": "N", "ih": "H", "if": "F"}),
        *vision.encoder_rules(c.image, "vision_model."),
    )
    if c.image.projector == "class":
        return (
            *shared,
            Rule("text_projection.weight", "classifier/kernel", "C D -> D C"),
            Rule("visual_projection.weight", f"{ours}/kernel", "C id -> id C"),
            Rule("logit_scale", f"{ours}/logit_scale", " -> 1"),
        )
    return (*shared, *_siglip_rules(ours))


def _siglip_rules(ours: str) -> tuple[Rule, ...]:
    head, attention = "vision_model.head", f"{ours}/attention"
    names = ("query", "key", "value")
    weights, biases = (tuple(f"{attention}/{name}{end}" for name in names) for end in ("", "_bias"))
    return (
        Rule("text_model.head.weight", "classifier/kernel", "C D -> D C"),
        Rule("text_model.head.bias", "classifier/bias", "C -> C"),
        Rule("logit_scale", f"{ours}/logit_scale", "1 -> 1"),
        Rule("logit_bias", f"{ours}/logit_bias", "1 -> 1"),
        Rule(f"{head}.probe", f"{ours}/probe", "1 1 id -> 1 id"),
        # Queries, keys and values one after the other.
        Rule(f"{head}.attention.in_proj_weight", weights, "(3 in ih) id -> 3 id in ih"),
        Rule(f"{head}.attention.in_proj_bias", biases, "(3 in ih) -> 3 in ih"),
        Rule(f"{head}.attention.out_proj.weight", f"{attention}/out", "id (in ih) -> in ih id"),
        Rule(f"{head}.attention.out_proj.bias", f"{attention}/out_bias", "id -> id"),
        Rule(f"{head}.layernorm.weight", f"{ours}/mlp_norm/scale", "id -> id"),
        Rule(f"{head}.layernorm.bias", f"{ours}/mlp_norm/bias", "id -> id"),
        Rule(f"{head}.mlp.fc1.weight", f"{ours}/mlp/up", "if id -> id if"),
        Rule(f"{head}.mlp.fc1.bias", f"{ours}/mlp/up_bias", "if -> if"),
        Rule(f"{head}.mlp.fc2.weight", f"{ours}/mlp/down", "id if -> if id"),
        Rule(f"{head}.mlp.fc2.bias", f"{ours}/mlp/down_bias", "id -> id"),
    )


FAMILY = Family(
    model_types=("clip", "siglip"),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    unused=vision.UNUSED,
)
