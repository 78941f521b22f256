"""BART (arXiv:1910.13461), mBART (arXiv:2001.08210), Pegasus (arXiv:1912.08777) in Hugging Face's
names.

Marian's layers. BART has learned positions, a table for each stack with two rows that belong to no
position, and normalises the embeddings of each stack. mBART and Pegasus normalise before each
branch and once after the last layer; Pegasus has Marian's positions.
"""

from collections.abc import Mapping, Set
from typing import Any

from research.interop.huggingface.families import marian
from research.interop.huggingface.families.fields import (
    number,
    read_start,
    refuse,
    write_start,
)
from research.interop.storage.family import Family
from research.interop.storage.layout import Rule, norm_rules
from research.models.config import ModelConfig

# Rows in front of that of position 0, a constant of transformers' class.
_OFFSET = 2
# transformers' own defaults for fields that a config.json leaves out.
_DEFAULTS = {
    "encoder_attention_heads": 16,
    "decoder_attention_heads": 16,
    "encoder_ffn_dim": 4096,
    "decoder_ffn_dim": 4096,
}
# The special tokens of each class: the decoder's first, the end of a text, padding.
_TOKENS = {
    "bart": dict(start=2, end=2, pad=1),
    "mbart": dict(start=None, end=2, pad=1),
    "pegasus": dict(start=0, end=1, pad=0),
}


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json and the tensors' `names` describe. ValueError for settings that
    our layers do not compute."""
    values = _DEFAULTS | dict(values)
    kind = values["model_type"]
    after, learned = kind == "bart", kind != "pegasus"
    # Early releases said what a class now is by itself.
    refuse(
        values,
        normalize_before=not after,
        normalize_embedding=learned,
        add_final_layer_norm=not after,
        static_position_embeddings=not learned,
    )
    positions: dict[str, Any] = {"position": "sinusoidal"}
    if learned:
        positions = {
            "position": "learned",
            "position_offset": _OFFSET,
            "encoder_positions": True,
            "embedding_norm": True,
        }
    body = marian.read_body(values) | {"init": "plain"}
    return ModelConfig(
        **body,
        **positions,
        norm_after=after,
        head_bias="final_logits_bias" in names,
        decoder_start=read_start(values, **_TOKENS[kind]),
        init_std=number(values, "init_std", 0.02),
    )


def serves(c: ModelConfig) -> bool:
    """True for an encoder-decoder with learned positions, or with sinusoids and norms before the
    branches."""
    sinusoids = c.position == "sinusoidal" and not c.norm_after
    return c.kind == "encoder_decoder" and (c.position == "learned" or sinusoids)


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json."""
    if c.position == "sinusoidal":
        kind, name = "pegasus", "Pegasus"
    else:
        kind, name = ("bart", "Bart") if c.norm_after else ("mbart", "MBart")
    tokens = _TOKENS[kind]
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": kind,
        **marian.write_body(c),
        "init_std": c.init_std,
        **write_start(c, end=tokens["end"], pad=tokens["pad"]),
    }


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """The tensors of BartForConditionalGeneration, as rules that read both ways."""
    tensor_rules = list(marian.rules(c))
    # The parameters that a stack has for itself beside its layers: in the embeddings and at its
    # end.
    for theirs, own, stack in (("encoder", "encoder_", "encoder/"), ("decoder", "", "")):
        norms = []
        if c.position == "learned":
            tensor_rules += [
                Rule(
                    f"model.{theirs}.embed_positions.weight",
                    f"embed/{own}positions",
                    "P D -> P D",
                )
            ]
        if c.embedding_norm:
            norms += [("layernorm_embedding", f"embed/{own}norm")]
        if not c.norm_after:
            norms += [("layer_norm", f"{stack}final_norm")]
        for name, path in norms:
            tensor_rules += norm_rules(f"model.{theirs}.{name}", path)
    return tuple(tensor_rules)


FAMILY = Family(
    model_types=tuple(_TOKENS),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    prefix="model.",
    unused=(
        *marian.FAMILY.unused,  # Pegasus'
        (r"model\.(en|de)coder\.version", "the release of the program that trained it"),
    ),
    copies=marian.FAMILY.copies,
)
