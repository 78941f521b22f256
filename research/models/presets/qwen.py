"""Qwen 2.5 and 3, and their mixtures of experts."""

from research.models.config import ModelConfig
from research.models.presets.llama import llama


def _qwen(
    layers: int, d_model: int, heads: int, kv_heads: int, d_ff: int, **changes
) -> ModelConfig:
    """Qwen 2.5 (arXiv:2412.15115) with biases on queries, keys and values; Qwen 3
    (arXiv:2505.09388) with query norms."""
    shared = dict(rope_theta=1e6, norm_eps=1e-6)  # of both families
    vocab_size, max_length = changes.pop("vocab_size", 151936), changes.pop("max_length", 32768)
    fields = {**shared, **changes}
    return llama(vocab_size, layers, d_model, heads, kv_heads, d_ff, max_length, **fields)


def _qwen_moe(
    layers: int, d_model: int, heads: int, kv_heads: int, d_ff: int, **changes
) -> ModelConfig:
    """Qwen1.5-MoE and Qwen 2 (arXiv:2407.10671, section 2.2.2) with a shared expert, Qwen 3
    (arXiv:2505.09388) without; `d_ff` is that of one expert."""
    return _qwen(layers, d_model, heads, kv_heads, d_ff, router_loss=0.001, **changes)


PRESETS: dict[str, ModelConfig] = {
    "qwen2.5_0.5b": _qwen(24, 896, 14, 2, 4864, attention_bias="qkv", tied=True),
    "qwen2.5_7b": _qwen(28, 3584, 28, 4, 18944, attention_bias="qkv", vocab_size=152064),
    "qwen3_0.6b": _qwen(28, 1024, 16, 8, 3072, head_size=128, query_norm=True, tied=True),
    "qwen3_8b": _qwen(36, 4096, 32, 8, 12288, query_norm=True),
    "qwen1.5_moe_a2.7b": _qwen_moe(
        24, 2048, 16, 16, 1408, attention_bias="qkv", experts=60, experts_per_token=4,
        normalized_routes=False, shared_d_ff=5632, max_length=8192,
    ),
    # As config.json of Qwen/Qwen2-57B-A14B; the tuned model's has 32768 positions.
    "qwen2_57b_a14b": _qwen_moe(
        28, 3584, 28, 4, 2560, attention_bias="qkv", experts=64, experts_per_token=8,
        normalized_routes=False, shared_d_ff=20480, max_length=131072,
    ),
    "qwen3_30b_a3b": _qwen_moe(
        48, 2048, 32, 4, 768, head_size=128, query_norm=True, experts=128, experts_per_token=8,
    ),
    "qwen3_235b_a22b": _qwen_moe(
        94, 4096, 64, 4, 1536, head_size=128, query_norm=True, experts=128, experts_per_token=8,
    ),
}  # fmt: skip
