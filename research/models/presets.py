"""Published transformers by name. Each builder holds what its family shares, each entry the sizes
of its paper."""

from research.models.config import ModelConfig
from research.ops.rope import RopeScaling


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


def _llama(
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
    return _llama(128256, layers, d_model, heads, 8, d_ff, 8192, rope_theta=500000.0, **changes)


def _qwen(
    layers: int, d_model: int, heads: int, kv_heads: int, d_ff: int, **changes
) -> ModelConfig:
    """Qwen 2.5 (arXiv:2412.15115) with biases on queries, keys and values; Qwen 3
    (arXiv:2505.09388) with query norms."""
    shared = dict(rope_theta=1e6, norm_eps=1e-6)  # of both families
    vocab_size = changes.pop("vocab_size", 151936)
    return _llama(
        vocab_size, layers, d_model, heads, kv_heads, d_ff, 32768, **{**shared, **changes}
    )


def _gemma2(
    layers: int, d_model: int, heads: int, kv_heads: int, d_ff: int, head_size: int, **changes
) -> ModelConfig:
    """Gemma 2 (arXiv:2408.00118, table 1): every second layer sees a window of 4,096, branches are
    normalised before and after, scores and logits are soft-capped. Norms scale by 1 + w."""
    return _llama(
        256000,
        layers,
        d_model,
        heads,
        kv_heads,
        d_ff,
        8192,
        **{
            "head_size": head_size,
            "window": 4096,
            "global_every": 2,
            "attention_softcap": 50.0,
            "logit_softcap": 30.0,
            **_gemma(d_model),
            **changes,
        },
    )


def _gemma3(
    layers: int, d_model: int, heads: int, kv_heads: int, d_ff: int, head_size: int, **changes
) -> ModelConfig:
    """Gemma 3's text model (arXiv:2503.19786, section 2): five layers with a window of 1,024, then
    one that sees everything and rotates slower; query norms in place of soft caps."""
    return _llama(
        changes.pop("vocab_size", 262144),
        layers,
        d_model,
        heads,
        kv_heads,
        d_ff,
        changes.pop("max_length", 131072),
        **{
            "head_size": head_size,
            "window": 1024,
            "global_every": 6,
            # The base of the global layers; local ones keep that of Gemma 2.
            "rope_theta": 1e6,
            "rope_scaling": RopeScaling(8.0, kind="linear"),
            "local_rope_theta": 10000.0,
            "query_norm": True,
            "attention_scale": 256**-0.5,
            **_gemma(d_model),
            **changes,
        },
    )


def _gemma(d_model: int) -> dict:
    """The fields that Gemma 2 and 3 share."""
    return {
        "norm_eps": 1e-6,
        "norm_offset": 1.0,
        "branch_norm": True,
        "activation": "gelu_tanh",
        "tied": True,
        "embedding_scale": d_model**0.5,
    }


def _bert(layers: int, d_model: int, heads: int) -> ModelConfig:
    """BERT (arXiv:1810.04805), with the vocabulary of the uncased models: post-norm encoder, token
    types, pooler, masked-LM head."""
    return ModelConfig(
        kind="encoder",
        vocab_size=30522,
        layers=layers,
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_size=64,
        d_ff=4 * d_model,
        max_length=512,
        position="learned",
        norm="layer",
        norm_after=True,
        norm_eps=1e-12,
        activation="gelu",
        gated=False,
        attention_bias="all",
        mlp_bias=True,
        tied=True,
        token_types=2,
        pooler=True,
        mlm_head=True,
        dropout=0.1,
        init="plain",
    )


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


_LLAMA31 = RopeScaling(factor=8.0, low_factor=1.0, high_factor=4.0, original_length=8192)
_GEMMA3_SMALL = dict(max_length=32768, rope_scaling=RopeScaling())  # made for 32k, unscaled
_SMOLLM2 = dict(rope_theta=100000.0, tied=True)

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
    "llama_7b": _llama(32000, 32, 4096, 32, 32, 11008, 2048, norm_eps=1e-6),
    "llama_13b": _llama(32000, 40, 5120, 40, 40, 13824, 2048, norm_eps=1e-6),
    "llama_33b": _llama(32000, 60, 6656, 52, 52, 17920, 2048, norm_eps=1e-6),
    "llama_65b": _llama(32000, 80, 8192, 64, 64, 22016, 2048),
    "llama2_7b": _llama(32000, 32, 4096, 32, 32, 11008, 4096),
    "llama2_13b": _llama(32000, 40, 5120, 40, 40, 13824, 4096),
    "llama2_70b": _llama(32000, 80, 8192, 64, 8, 28672, 4096),
    "llama3_8b": _llama3(32, 4096, 32, 14336),
    "llama3_70b": _llama3(80, 8192, 64, 28672),
    "llama3_405b": _llama3(126, 16384, 128, 53248, rope_scaling=_LLAMA31),
    "smollm2_135m": _llama(49152, 30, 576, 9, 3, 1536, 8192, **_SMOLLM2),
    "smollm2_360m": _llama(49152, 32, 960, 15, 5, 2560, 8192, **_SMOLLM2),
    "smollm2_1.7b": _llama(49152, 24, 2048, 32, 32, 8192, 8192, rope_theta=130000.0, tied=True),
    "mistral_7b": _llama(32000, 32, 4096, 32, 8, 14336, 32768, window=4096),
    "mixtral_8x7b": _llama(
        32000, 32, 4096, 32, 8, 14336, 32768, rope_theta=1e6, experts=8, experts_per_token=2,
        router_loss=0.02,
    ),
    "mixtral_8x22b": _llama(
        32768, 56, 6144, 48, 8, 16384, 65536, rope_theta=1e6, experts=8, experts_per_token=2,
        router_loss=0.001,
    ),
    "qwen2.5_0.5b": _qwen(24, 896, 14, 2, 4864, attention_bias="qkv", tied=True),
    "qwen2.5_7b": _qwen(28, 3584, 28, 4, 18944, attention_bias="qkv", vocab_size=152064),
    "qwen3_0.6b": _qwen(28, 1024, 16, 8, 3072, head_size=128, query_norm=True, tied=True),
    "qwen3_8b": _qwen(36, 4096, 32, 8, 12288, query_norm=True),
    "gemma2_2b": _gemma2(26, 2304, 8, 4, 9216, 256),
    "gemma2_9b": _gemma2(42, 3584, 16, 8, 14336, 256),
    "gemma2_27b": _gemma2(46, 4608, 32, 16, 36864, 128, attention_scale=144**-0.5),
    "gemma3_270m": _gemma3(18, 640, 4, 1, 2048, 256, **_GEMMA3_SMALL, window=512),
    "gemma3_1b": _gemma3(26, 1152, 4, 1, 6912, 256, **_GEMMA3_SMALL, window=512),
    "gemma3_4b": _gemma3(34, 2560, 8, 4, 10240, 256, vocab_size=262208),
    "gemma3_12b": _gemma3(48, 3840, 16, 8, 15360, 256, vocab_size=262208),
    "gemma3_27b": _gemma3(
        62, 5376, 32, 16, 21504, 128, vocab_size=262208, attention_scale=168**-0.5,
    ),
    "bert_base": _bert(12, 768, 12),
    "bert_large": _bert(24, 1024, 16),
    "transformer_base": _transformer(512, 8, 2048, 0.1),
    "transformer_big": _transformer(1024, 16, 4096, 0.3),
    "t5_small": _t5(6, 512, 8, 2048),
    "t5_base": _t5(12, 768, 12, 3072),
    "t5_large": _t5(24, 1024, 16, 4096),
}  # fmt: skip
