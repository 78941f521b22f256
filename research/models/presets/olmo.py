"""OLMo 2 and 3, and OLMoE."""

from research.models.config import ModelConfig
from research.models.presets.llama import llama
from research.ops.rope_scaling import RopeScaling


def _olmo2(
    layers: int, d_model: int, heads: int, kv_heads: int, d_ff: int, **changes
) -> ModelConfig:
    """OLMo 2 (arXiv:2501.00656, table 1; config.json of allenai/OLMo-2-0425-1B, -1124-7B, -1124-13B
    and -0325-32B): norms behind the branches alone, and norms of queries and keys over all heads of
    a token."""
    fields = {
        "norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "branch_norm": True,
        "norm_before": False,
        "query_norm": True,
        "query_norm_over": "heads",
        **changes,
    }
    vocab_size, max_length = fields.pop("vocab_size", 100352), fields.pop("max_length", 4096)
    return llama(vocab_size, layers, d_model, heads, kv_heads, d_ff, max_length, **fields)


def _olmo3(
    layers: int, d_model: int, heads: int, kv_heads: int, d_ff: int, **changes
) -> ModelConfig:
    """OLMo 3 (config.json of allenai/Olmo-3-1025-7B and Olmo-3-1125-32B): OLMo 2 with a window in
    three of four layers, and YaRN in the fourth."""
    return _olmo2(
        layers,
        d_model,
        heads,
        kv_heads,
        d_ff,
        vocab_size=100278,
        max_length=65536,
        window=4096,
        global_every=4,
        local_rope_theta=500000.0,
        rope_scaling=RopeScaling(8.0, original_length=8192, kind="yarn"),
        **changes,
    )


PRESETS: dict[str, ModelConfig] = {
    "olmo2_1b": _olmo2(16, 2048, 16, 16, 8192),
    "olmo2_7b": _olmo2(32, 4096, 32, 32, 11008),
    "olmo2_13b": _olmo2(40, 5120, 40, 40, 13824),
    "olmo2_32b": _olmo2(64, 5120, 40, 8, 27648),
    # OLMoE (arXiv:2409.02060, table 1; config.json of allenai/OLMoE-1B-7B-0924); norms before the
    # branches, as in LLaMA.
    "olmoe_1b_7b": llama(
        50304, 16, 2048, 16, 16, 1024, 4096, query_norm=True, query_norm_over="heads",
        experts=64, experts_per_token=8, normalized_routes=False, router_loss=0.01,
    ),
    "olmo3_7b": _olmo3(32, 4096, 32, 32, 11008),
    "olmo3_32b": _olmo3(64, 5120, 40, 8, 27648),
}  # fmt: skip
