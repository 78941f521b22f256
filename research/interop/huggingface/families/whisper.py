"""Whisper (arXiv:2212.04356) in Hugging Face's names.

The layers of mBART without biases of keys, behind two convolutions over log-mel frames. Encoders
have sinusoids, decoders a table of positions.
"""

from collections.abc import Mapping, Set
from typing import Any

from research.interop.huggingface.families import marian
from research.interop.huggingface.families.fields import integer, number, refuse
from research.interop.storage.family import Family
from research.interop.storage.layout import Rule, norm_rules
from research.models.config import ModelConfig

# transformers' own defaults for fields that a config.json leaves out.
_DEFAULTS = {
    "vocab_size": 51865,
    "d_model": 384,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_ffn_dim": 1536,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "dropout": 0.0,
    "init_std": 0.02,
}
# Ids of the class, which stay where a model's own are not known.
_TOKENS = {"decoder_start_token_id": 50257, "eos_token_id": 50256, "pad_token_id": 50256}
SINUSOIDS = ("model.encoder.embed_positions.weight", "the sinusoids")


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json describes; `names`, the tensors, are not asked. ValueError for
    settings that our layers do not compute."""
    given = {name: value for name, value in values.items() if value is not None}
    values = {**_DEFAULTS, **given}
    refuse(values, scale_embedding=False)
    length = integer(values, "max_target_positions")
    body = marian.read_body(values | {"max_position_embeddings": length})
    changes = {
        "attention_bias": "no_key",
        "position": "learned",
        "mels": integer(values, "num_mel_bins"),
        "frames": 2 * integer(values, "max_source_positions"),
        "init": "plain",
        "init_std": number(values, "init_std"),
    }
    return ModelConfig(**body | changes)


def serves(c: ModelConfig) -> bool:
    """True for an encoder-decoder that reads sound."""
    return c.kind == "encoder_decoder" and c.mels > 0


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json."""
    body = marian.write_body(c)
    del body["max_position_embeddings"]
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        **body,
        "num_mel_bins": c.mels,
        "max_source_positions": c.frames // 2,
        "max_target_positions": c.max_length,
        "init_std": c.init_std,
        **_TOKENS,
    }


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """The tensors of WhisperForConditionalGeneration, as rules that read both ways."""
    left_out = ("embed/table", "head/output_bias")
    layers = [
        rule
        for rule in marian.rules(c)
        if rule.path not in left_out and not str(rule.path).endswith("key_bias")
    ]
    sound = "encoder/sound"
    return (
        Rule("model.decoder.embed_tokens.weight", "embed/table", "V D -> V D"),
        Rule("model.decoder.embed_positions.weight", "embed/positions", "P D -> P D"),
        # torch's kernels are [out, in, frames].
        Rule("model.encoder.conv1.weight", f"{sound}/first/kernel", "D m 3 -> (3 m) D"),
        Rule("model.encoder.conv1.bias", f"{sound}/first/bias", "D -> D"),
        Rule("model.encoder.conv2.weight", f"{sound}/second/kernel", "D M 3 -> (3 M) D"),
        Rule("model.encoder.conv2.bias", f"{sound}/second/bias", "D -> D"),
        *layers,
        *norm_rules("model.encoder.layer_norm", "encoder/final_norm"),
        *norm_rules("model.decoder.layer_norm", "final_norm"),
    )


FAMILY = Family(
    model_types=("whisper",),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    unused=(SINUSOIDS,),
    copies=(("proj_out.weight", "embed/table"),),
)
