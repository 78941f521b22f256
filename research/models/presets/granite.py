"""Granite 3."""

from research.models.config import ModelConfig
from research.models.presets.llama import llama


def _granite(d_model: int, d_ff: int, attention_scale: float, head_scale: float) -> ModelConfig:
    """Granite 3.0's dense models: LLaMA's layers with factors of maximal update parametrisation
    (arXiv:2408.13359, section 2). Numbers as in config.json of ibm-granite/granite-3.0-2b-base and
    granite-3.0-8b-base."""
    return llama(
        49155,
        40,
        d_model,
        32,
        8,
        d_ff,
        4096,
        tied=True,
        embedding_scale=12.0,
        branch_scale=0.22,
        attention_scale=attention_scale,
        head_scale=head_scale,
    )


PRESETS: dict[str, ModelConfig] = {
    "granite3_2b": _granite(2048, 8192, 1 / 64, 1 / 8),
    "granite3_8b": _granite(4096, 12800, 1 / 128, 1 / 16),
}
