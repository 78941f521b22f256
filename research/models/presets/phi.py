"""Phi 3, 3.5 and 4."""

from research.models.config import ModelConfig
from research.models.presets.llama import llama
from research.ops.rope_scaling import RopeScaling


def _phi(
    layers: int, d_model: int, heads: int, kv_heads: int, d_ff: int, max_length: int, **changes
) -> ModelConfig:
    """Phi 3 (arXiv:2404.14219) and Phi 4 (arXiv:2412.08905): LLaMA's layers."""
    vocab_size = changes.pop("vocab_size", 32064)
    return llama(vocab_size, layers, d_model, heads, kv_heads, d_ff, max_length, **changes)


def _phi_moe() -> ModelConfig:
    """Phi-3.5-MoE (arXiv:2404.14219, section 2; transformers' PhimoeConfig has these sizes by
    default): layer norms, biases, and two of 16 experts by SparseMixer (arXiv:2409.12136). At the
    length it was trained on first; the LongRoPE factors for 131,072 tokens come with a checkpoint.
    """
    changes = dict(norm="layer", attention_bias="all", head_bias=True, window=131072)
    experts = dict(experts=16, experts_per_token=2, router="sparsemixer", router_loss=0.001)
    return _phi(32, 4096, 32, 8, 6400, 4096, **changes, **experts)


# LongRoPE's long factors of Phi-4-mini (arXiv:2503.01743), one for each of 48 rotary pairs.
_PHI4_MINI = [
    1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649,
    2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845,
    5.351743533, 5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158,
    11.70738129, 13.09260651, 14.64173252, 16.37415215, 18.31155283, 20.47818807, 22.90118105,
    25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71,
    32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
]  # fmt: skip

PRESETS: dict[str, ModelConfig] = {
    "phi3_mini": _phi(32, 3072, 32, 32, 8192, 4096, window=2047),
    "phi3_medium": _phi(40, 5120, 40, 10, 17920, 4096, window=2047),
    "phi3.5_moe": _phi_moe(),
    "phi4": _phi(40, 5120, 40, 10, 17920, 16384, vocab_size=100352, rope_theta=250000.0),
    "phi4_mini": _phi(
        32, 3072, 24, 8, 8192, 131072, vocab_size=200064, tied=True, rotary_size=96,
        window=262144,  # longer than its texts
        rope_scaling=RopeScaling(
            131072 / 4096, original_length=4096, kind="longrope",
            short_factors=[1.0] * 48, long_factors=_PHI4_MINI,
        ),
    ),
}  # fmt: skip
