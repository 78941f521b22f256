"""Every family in a size that compiles in a second."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from research.models.config import ModelConfig
from research.models.presets import PRESETS
from research.ops.rope_scaling import RopeScaling

VOCAB = 96
_NAMES = {
    "gpt2": {},
    "llama2_7b": {},
    "llama3_405b": {"kv_heads": 2},
    "mistral_7b": {"kv_heads": 2, "window": 5},
    "mixtral_8x7b": {"kv_heads": 2, "experts": 4},
    "qwen2.5_7b": {"kv_heads": 2},
    "qwen3_8b": {"kv_heads": 2},
    "qwen1.5_moe_a2.7b": {"kv_heads": 2, "experts": 4, "experts_per_token": 2, "shared_d_ff": 48},
    # Two whole periods of local and global layers, and one layer left over.
    "gemma2_2b": {"kv_heads": 2, "window": 4, "layers": 5, "attention_softcap": 5.0},
    "gemma3_1b": {"kv_heads": 2, "window": 3, "layers": 4, "global_every": 3},
    # Two documents of 7 and 5 tokens: one has the long factors, one the short.
    "phi4_mini": {
        "kv_heads": 2,
        "rotary_size": 6,
        "window": 0,
        "rope_scaling": RopeScaling(
            4.0,
            original_length=6,
            short_factors=[1.0, 1.2, 1.5],
            long_factors=[1.0, 2.0, 5.0],
            kind="longrope",
        ),
    },
    "olmo3_7b": {"kv_heads": 2, "window": 4, "layers": 3, "global_every": 2},
    "gpt_oss_20b": {
        **{"kv_heads": 2, "layers": 3, "window": 4, "experts": 4, "experts_per_token": 2},
        "rope_scaling": RopeScaling(4.0, original_length=6, truncate=False, kind="yarn"),
        "gate_limit": 0.05,
    },
    "phi3.5_moe": {"kv_heads": 2, "window": 0, "experts": 4, "router_jitter": 0.2},
    "smollm3_3b": {"kv_heads": 2, "layers": 3, "unrotated_every": 2},
    "granite3_2b": {"kv_heads": 2},
    # Values narrower than keys, and a first layer without experts.
    "deepseek_v3": {
        **{"head_size": 12, "rotary_size": 4, "value_size": 8, "kv_latent": 16, "query_latent": 12},
        **{"layers": 3, "dense_layers": 1, "dense_d_ff": 48, "shared_d_ff": 64},
        **{"experts": 8, "experts_per_token": 3, "route_groups": 4, "groups_per_token": 2},
    },
    "pythia_70m": {"rotary_size": 2},
    "opt_125m": {},
    "bert_base": {},
    "mpnet_base": {},
    "modernbert_base": {
        **{"layers": 4, "window": 4, "layer_kinds": ("global", "local", "local", "global")},
    },
    "transformer_base": {"encoder_layers": 2, "embedding_scale": 32**0.5},
    "t5_small": {"encoder_layers": 2, "head_scale": 32**-0.5},
    "bart_base": {"encoder_layers": 2},
}
FAMILIES: dict[str, ModelConfig] = {
    name: replace(
        PRESETS[name],
        **{
            **dict(
                vocab_size=VOCAB,
                layers=2,
                d_model=32,
                heads=4,
                kv_heads=4,
                head_size=8,
                d_ff=64,
                max_length=32,
            ),
            **dict(dropout=0.0),
            **({"embedding_scale": 32**0.5} if name.startswith("gemma") else {}),
            **changes,
        },
    )
    for name, changes in _NAMES.items()
}
DECODERS = [name for name, config in FAMILIES.items() if config.kind == "decoder"]
# These differ from others in what a layer computes and in nothing that runs layers, which tests of
# seconds a family are about: there they are among the slow ones.
_LAYERS_ALONE = (
    *("phi4_mini", "olmo3_7b", "smollm3_3b", "granite3_2b", "pythia_70m", "opt_125m"),
    *("bart_base", "qwen1.5_moe_a2.7b", "gpt_oss_20b", "deepseek_v3", "mpnet_base"),
)


def rest_slow(names: Iterable[str]) -> list:
    """Parameters of a test over these families, with the mark of slow ones where others stand for
    them."""
    return [
        pytest.param(name, marks=pytest.mark.slow if name in _LAYERS_ALONE else ())
        for name in names
    ]


class Roles:
    """A tokenizer's roles without a tokenizer."""

    vocab_size, bos_id, eos_id, pad_id, mask_id, sentinel_ids = 96, 1, 2, 0, 3, tuple(range(4, 36))


def random_batch(batch: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Two documents a row, in encoder and decoder alike, with targets and weights for a loss."""
    rng = np.random.default_rng(seed)
    rows = {}
    for side in ("", "encoder_"):
        cut = length // 2 + 1
        positions = np.concatenate([np.arange(cut), np.arange(length - cut)]).astype(np.int32)
        segments = np.where(np.arange(length) < cut, 1, 2).astype(np.int32)
        rows |= {
            f"{side}inputs": rng.integers(0, VOCAB, (batch, length), dtype=np.int32),
            f"{side}positions": np.tile(positions, (batch, 1)),
            f"{side}segments": np.tile(segments, (batch, 1)),
        }
    targets = rng.integers(0, VOCAB, (batch, length), dtype=np.int32)
    return rows | {"targets": targets, "weights": np.ones((batch, length), np.float32)}
