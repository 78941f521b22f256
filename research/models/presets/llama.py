"""LLaMA and the models of its layers alone: SmolLM2, Mistral, Mixtral."""

from research.models.config import ModelConfig
from research.ops.rope_scaling import RopeScaling


def llama(
    vocab_size: int,
    layers: int,
    d_model: int,
    heads: int,
    kv_heads: int,
    d_ff: int,
    max_length: int,
    **changes,
) -> ModelConfig:
    """LLaMA (arXiv:2302.13971) and the families after it: norms before each branch (RMS), rotary
    positions, SwiGLU, no biases."""
    sizes = dict(
        vocab_size=vocab_size,
        layers=layers,
        d_model=d_model,
        heads=heads,
        kv_heads=kv_heads,
        d_ff=d_ff,
    )
    return ModelConfig(
        **{"head_size": d_model // heads, "max_length": max_length, **sizes, **changes}
    )


def _llama3(layers: int, d_model: int, heads: int, d_ff: int, **changes) -> ModelConfig:
    """Llama 3 (arXiv:2407.21783, table 3): 128k words, 8 key heads, a rotary base of 500,000."""
    return llama(128256, layers, d_model, heads, 8, d_ff, 8192, rope_theta=500000.0, **changes)


_LLAMA31 = RopeScaling(factor=8.0, low_factor=1.0, high_factor=4.0, original_length=8192)
_SMOLLM2 = dict(rope_theta=100000.0, tied=True)

PRESETS: dict[str, ModelConfig] = {
    "llama_7b": llama(32000, 32, 4096, 32, 32, 11008, 2048, norm_eps=1e-6),
    "llama_13b": llama(32000, 40, 5120, 40, 40, 13824, 2048, norm_eps=1e-6),
    "llama_33b": llama(32000, 60, 6656, 52, 52, 17920, 2048, norm_eps=1e-6),
    "llama_65b": llama(32000, 80, 8192, 64, 64, 22016, 2048),
    "llama2_7b": llama(32000, 32, 4096, 32, 32, 11008, 4096),
    "llama2_13b": llama(32000, 40, 5120, 40, 40, 13824, 4096),
    "llama2_70b": llama(32000, 80, 8192, 64, 8, 28672, 4096),
    "llama3_8b": _llama3(32, 4096, 32, 14336),
    "llama3_70b": _llama3(80, 8192, 64, 28672),
    "llama3_405b": _llama3(126, 16384, 128, 53248, rope_scaling=_LLAMA31),
    "smollm2_135m": llama(49152, 30, 576, 9, 3, 1536, 8192, **_SMOLLM2),
    "smollm2_360m": llama(49152, 32, 960, 15, 5, 2560, 8192, **_SMOLLM2),
    "smollm2_1.7b": llama(49152, 24, 2048, 32, 32, 8192, 8192, rope_theta=130000.0, tied=True),
    # SmolLM3 (huggingface.co/blog/smollm3; config.json of HuggingFaceTB/SmolLM3-3B): every fourth
    # layer without rotary positions.
    "smollm3_3b": llama(
        128256, 36, 2048, 16, 4, 11008, 65536, rope_theta=5e6, norm_eps=1e-6, tied=True,
        unrotated_every=4,
    ),
    "mistral_7b": llama(32000, 32, 4096, 32, 8, 14336, 32768, window=4096),
    # As config.json of mistralai/Ministral-8B-Instruct-2410. Its window and length are one number,
    # so the layers that have none see no more.
    "ministral_8b": llama(
        131072, 36, 4096, 32, 8, 12288, 32768, head_size=128, rope_theta=1e8, window=32768,
    ),
    # The text model in config.json of mistralai/Ministral-3-8B-Base-2512.
    "ministral3_8b": llama(
        131072, 34, 4096, 32, 8, 14336, 262144, head_size=128, rope_theta=1e6, query_growth=0.1,
        rope_scaling=RopeScaling(
            16.0, original_length=16384, attention_factor=1.0, kind="yarn",
        ),
    ),
    "mixtral_8x7b": llama(
        32000, 32, 4096, 32, 8, 14336, 32768, rope_theta=1e6, experts=8, experts_per_token=2,
        router_loss=0.02,
    ),
    "mixtral_8x22b": llama(
        32768, 56, 6144, 48, 8, 16384, 65536, rope_theta=1e6, experts=8, experts_per_token=2,
        router_loss=0.001,
    ),
}  # fmt: skip
