"""gpt-oss (arXiv:2508.10925)."""

from research.models.config import ModelConfig
from research.models.presets.llama import llama
from research.ops.rope_scaling import RopeScaling


def _gpt_oss(layers: int, experts: int) -> ModelConfig:
    """Layers of 64 query and 8 key heads with sinks, every second with a window of 128 tokens, and
    experts with biases of which a token has four; sizes of the published config.json files."""
    yarn = RopeScaling(
        factor=32.0,
        original_length=4096,
        beta_fast=32.0,
        beta_slow=1.0,
        truncate=False,
        kind="yarn",
    )
    return llama(
        vocab_size=201088,
        layers=layers,
        d_model=2880,
        heads=64,
        kv_heads=8,
        d_ff=2880,
        max_length=131072,
        head_size=64,
        rope_theta=150000.0,
        rope_scaling=yarn,
        window=128,
        global_every=2,
        attention_bias="all",
        attention_sinks=True,
        experts=experts,
        experts_per_token=4,
        mlp_bias=True,
        router_logit_bias=True,
        router_loss=0.9,
        gate_slope=1.702,
        gate_limit=7.0,
        up_offset=1.0,
    )


PRESETS: dict[str, ModelConfig] = {
    "gpt_oss_20b": _gpt_oss(24, experts=32),
    "gpt_oss_120b": _gpt_oss(36, experts=128),
}
