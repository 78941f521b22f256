"""GPT-NeoX and Pythia, and OPT."""

from research.models.config import ModelConfig


def _neox(layers: int, d_model: int, heads: int, **changes) -> ModelConfig:
    """GPT-NeoX (arXiv:2204.06745) and Pythia (arXiv:2304.01373, table 1): parallel branches, a
    quarter of each head rotated."""
    head_size = d_model // heads
    fields = dict(
        vocab_size=50304,
        layers=layers,
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_size=head_size,
        d_ff=4 * d_model,
        max_length=2048,
        rotary_size=head_size // 4,
        norm="layer",
        parallel=True,
        activation="gelu",
        gated=False,
        attention_bias="all",
        mlp_bias=True,
    )
    return ModelConfig(**{**fields, **changes})


def _opt(layers: int, d_model: int, heads: int) -> ModelConfig:
    """OPT (arXiv:2205.01068, table 1): GPT-2's layers with a rectifier."""
    return ModelConfig(
        vocab_size=50272,
        layers=layers,
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_size=d_model // heads,
        d_ff=4 * d_model,
        max_length=2048,
        position="learned",
        position_offset=2,
        norm="layer",
        activation="relu",
        gated=False,
        attention_bias="all",
        mlp_bias=True,
        tied=True,
        dropout=0.1,
    )


PRESETS: dict[str, ModelConfig] = {
    "pythia_70m": _neox(6, 512, 8),
    "pythia_160m": _neox(12, 768, 12),
    "pythia_410m": _neox(24, 1024, 16),
    "pythia_1b": _neox(16, 2048, 8),
    "pythia_1.4b": _neox(24, 2048, 16),
    "pythia_2.8b": _neox(32, 2560, 32),
    "pythia_6.9b": _neox(32, 4096, 32, vocab_size=50432),
    "pythia_12b": _neox(36, 5120, 40, vocab_size=50688),
    "gpt_neox_20b": _neox(44, 6144, 64, vocab_size=50432, activation="gelu_tanh"),
    "opt_125m": _opt(12, 768, 12),
    "opt_1.3b": _opt(24, 2048, 32),
    "opt_2.7b": _opt(32, 2560, 32),
    "opt_6.7b": _opt(32, 4096, 32),
    "opt_13b": _opt(40, 5120, 40),
    "opt_66b": _opt(64, 9216, 72),
}
