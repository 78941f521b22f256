"""Encoder-decoders: the transformer of 2017 and T5."""

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


PRESETS: dict[str, ModelConfig] = {
    "transformer_base": _transformer(512, 8, 2048, 0.1),
    "transformer_big": _transformer(1024, 16, 4096, 0.3),
    "t5_small": _t5(6, 512, 8, 2048),
    "t5_base": _t5(12, 768, 12, 3072),
    "t5_large": _t5(24, 1024, 16, 4096),
}  # fmt: skip
