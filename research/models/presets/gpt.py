"""GPT-2 and GPT-3."""

from research.models.config import ModelConfig


def _gpt(
    layers: int, d_model: int, heads: int, head_size: int = 64, max_length: int = 1024
) -> ModelConfig:
    """GPT-2 (Radford et al. 2019) and, with 2,048 positions, GPT-3 (arXiv:2005.14165, table 2.1).

    GPT-3 is given in dense form; the bands that every second layer of the original attended in
    were never published. Table 2.1 lists 24 heads of 128 for the 1.3B model, which do not give
    1.3B parameters; 16 do.
    """
    return ModelConfig(
        # 256 bytes, 50,000 merges and the end of text.
        vocab_size=50257,
        layers=layers,
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_size=head_size,
        d_ff=4 * d_model,
        max_length=max_length,
        position="learned",
        norm="layer",
        activation="gelu_tanh",
        gated=False,
        attention_bias="all",
        mlp_bias=True,
        tied=True,
        dropout=0.1,
    )


PRESETS: dict[str, ModelConfig] = {
    "gpt2": _gpt(12, 768, 12),
    "gpt2_medium": _gpt(24, 1024, 16),
    "gpt2_large": _gpt(36, 1280, 20),
    "gpt2_xl": _gpt(48, 1600, 25),
    "gpt3_125m": _gpt(12, 768, 12, 64, 2048),
    "gpt3_350m": _gpt(24, 1024, 16, 64, 2048),
    "gpt3_760m": _gpt(24, 1536, 16, 96, 2048),
    "gpt3_1.3b": _gpt(24, 2048, 16, 128, 2048),
    "gpt3_2.7b": _gpt(32, 2560, 32, 80, 2048),
    "gpt3_6.7b": _gpt(32, 4096, 32, 128, 2048),
    "gpt3_13b": _gpt(40, 5140, 40, 128, 2048),
    "gpt3_175b": _gpt(96, 12288, 96, 128, 2048),
}  # fmt: skip
