"""Qwen 2.5 and 3."""

from research.models.config import ModelConfig
from research.models.presets.llama import llama


def _qwen(
    layers: int, d_model: int, heads: int, kv_heads: int, d_ff: int, **changes
) -> ModelConfig:
    """Qwen 2.5 (arXiv:2412.15115) with biases on queries, keys and values; Qwen 3
    (arXiv:2505.09388) with query norms."""
    shared = dict(rope_theta=1e6, norm_eps=1e-6)  # of both families
    vocab_size = changes.pop("vocab_size", 151936)
    return llama(vocab_size, layers, d_model, heads, kv_heads, d_ff, 32768, **{**shared, **changes})


PRESETS: dict[str, ModelConfig] = {
    "qwen2.5_0.5b": _qwen(24, 896, 14, 2, 4864, attention_bias="qkv", tied=True),
    "qwen2.5_7b": _qwen(28, 3584, 28, 4, 18944, attention_bias="qkv", vocab_size=152064),
    "qwen3_0.6b": _qwen(28, 1024, 16, 8, 3072, head_size=128, query_norm=True, tied=True),
    "qwen3_8b": _qwen(36, 4096, 32, 8, 12288, query_norm=True),
}
