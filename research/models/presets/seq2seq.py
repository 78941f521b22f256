"""Encoder-decoders: the transformer of 2017, T5, mT5, BART, Pegasus and Whisper."""

from dataclasses import replace

from research.models.config import ModelConfig


def _transformer(d_model: int, heads: int, d_ff: int, dropout: float) -> ModelConfig:
    """ "Attention Is All You Need" (arXiv:1706.03762, table 3), one table for source, target and
    output words.

    The paper's vocabulary is "about 37000" words: the body is exact, the sum depends on that
    number.
    """
    return ModelConfig(
        kind="encoder_decoder",
        vocab_size=37000,
        layers=6,
        encoder_layers=6,
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_size=64,
        d_ff=d_ff,
        max_length=1024,  # the paper sets no limit; its sinusoids have none
        position="sinusoidal",
        norm="layer",
        norm_after=True,
        activation="relu",
        gated=False,
        mlp_bias=True,
        tied=True,
        embedding_scale=d_model**0.5,
        dropout=dropout,
        init="xavier",
    )


def _t5(layers: int, d_model: int, heads: int, d_ff: int, head_size: int = 64) -> ModelConfig:
    """T5 (arXiv:1910.10683): relative position buckets, unscaled scores, a tied head on states over
    sqrt(d_model)."""
    return ModelConfig(
        kind="encoder_decoder",
        # 32,000 pieces and 100 sentinels, filled up to a multiple of 128.
        vocab_size=32128,
        layers=layers,
        encoder_layers=layers,
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_size=head_size,
        d_ff=d_ff,
        max_length=512,  # of pretraining; relative positions have no limit
        position="relative",
        norm_eps=1e-6,
        activation="relu",
        gated=False,
        attention_scale=1.0,
        tied=True,
        head_scale=d_model**-0.5,
        dropout=0.1,
        init="t5",
        init_std=1.0,
    )


def _mt5(layers: int, d_model: int, heads: int, d_ff: int) -> ModelConfig:
    """mT5 (arXiv:2010.11934): T5 release 1.1, with a gated feed-forward layer and a head of its
    own, for the words of 101 languages."""
    changes = dict(activation="gelu_tanh", gated=True, tied=False, head_scale=1.0)
    # 250,000 pieces and 100 sentinels, filled up.
    return replace(_t5(layers, d_model, heads, d_ff), vocab_size=250112, **changes)


def _bart(layers: int, d_model: int, heads: int, **changes) -> ModelConfig:
    """BART (arXiv:1910.13461, section 2): the layers of 2017 with learned positions, of which each
    stack has its own after two rows that belong to none, and a norm of the embeddings."""
    fields = dict(
        vocab_size=50265,
        layers=layers,
        encoder_layers=layers,
        position="learned",
        position_offset=2,
        encoder_positions=True,
        embedding_norm=True,
        activation="gelu",
        attention_bias="all",
        embedding_scale=1.0,
        head_bias=True,
        decoder_start="end",
        init="plain",
    )
    return replace(_transformer(d_model, heads, 4 * d_model, 0.1), **{**fields, **changes})


def _whisper(layers: int, d_model: int, **changes) -> ModelConfig:
    """Whisper (arXiv:2212.04356, table 1): log-mel frames of 30 s behind two convolutions, texts of
    up to 448 tokens; the multilingual vocabulary."""
    c = ModelConfig(
        kind="encoder_decoder",
        vocab_size=51865,
        layers=layers,
        encoder_layers=layers,
        d_model=d_model,
        heads=d_model // 64,
        kv_heads=d_model // 64,
        head_size=64,
        d_ff=4 * d_model,
        max_length=448,
        position="learned",
        norm="layer",
        activation="gelu",
        gated=False,
        attention_bias="no_key",
        mlp_bias=True,
        tied=True,
        mels=80,
        init="plain",
    )
    return replace(c, **changes)


PRESETS: dict[str, ModelConfig] = {
    "transformer_base": _transformer(512, 8, 2048, 0.1),
    "transformer_big": _transformer(1024, 16, 4096, 0.3),
    "t5_small": _t5(6, 512, 8, 2048),
    "t5_base": _t5(12, 768, 12, 3072),
    "t5_large": _t5(24, 1024, 16, 4096),
    "mt5_small": _mt5(8, 512, 6, 1024),
    "mt5_base": _mt5(12, 768, 12, 2048),
    "mt5_large": _mt5(24, 1024, 16, 2816),
    "bart_base": _bart(6, 768, 12),
    "bart_large": _bart(12, 1024, 16),
    "mbart_large": _bart(
        12, 1024, 16, vocab_size=250027, norm_after=False, embedding_scale=32.0,
        decoder_start="pad",
    ),
    "pegasus_large": _bart(
        16, 1024, 16, vocab_size=96103, position="sinusoidal", position_offset=0,
        encoder_positions=False, embedding_norm=False, norm_after=False, embedding_scale=32.0,
        activation="relu", decoder_start="pad",
    ),
    "whisper_tiny": _whisper(4, 384),
    "whisper_tiny.en": _whisper(4, 384, vocab_size=51864),
    "whisper_base": _whisper(6, 512),
    "whisper_small": _whisper(12, 768),
    "whisper_medium": _whisper(24, 1024),
    "whisper_large_v2": _whisper(32, 1280),
    "whisper_large_v3": _whisper(32, 1280, vocab_size=51866, mels=128),
    "whisper_large_v3_turbo": _whisper(4, 1280, vocab_size=51866, mels=128, encoder_layers=32),
}  # fmt: skip
