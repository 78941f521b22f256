"""Gemma 2 and 3."""

from research.models.config import ModelConfig
from research.models.presets.llama import llama
from research.ops.rope_scaling import RopeScaling


def _gemma2(
    layers: int, d_model: int, heads: int, kv_heads: int, d_ff: int, head_size: int, **changes
) -> ModelConfig:
    """Gemma 2 (arXiv:2408.00118, table 1): every second layer sees a window of 4,096, branches are
    normalised before and after, scores and logits are soft-capped. Norms scale by 1 + w."""
    return llama(
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
    return llama(
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


_GEMMA3_SMALL = dict(max_length=32768, rope_scaling=RopeScaling())  # made for 32k, unscaled

PRESETS: dict[str, ModelConfig] = {
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
}  # fmt: skip
