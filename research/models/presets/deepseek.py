"""DeepSeek-V2 and V3: latent attention, first layers without experts, experts in groups.

Sizes of V3 (R1 has the same) are the defaults of transformers' DeepseekV3Config and the inference
code's config_671B.json. Those of V2 and V2-Lite are of their paper (arXiv:2405.04434, section 3.1.2
and appendix B), and their totals are those of the published files.
"""

from research.models.config import ModelConfig
from research.models.presets.llama import llama
from research.ops.rope_scaling import RopeScaling


def _deepseek(
    layers: int, d_model: int, heads: int, d_ff: int, shared: int, *, mscale: float, **changes
) -> ModelConfig:
    """V2 (arXiv:2405.04434, section 3.1.2) and V3 (arXiv:2412.19437, section 4.2), each with `d_ff`
    of one expert, of which `shared` are for all tokens. Heads have 64 rotated elements and 128
    others."""
    shared_fields = {
        **{"head_size": 192, "rotary_size": 64, "value_size": 128, "kv_latent": 512},
        **{"norm_eps": 1e-6, "shared_d_ff": shared * d_ff, "shared_gate": False},
        # Both of DeepSeek's scales are alike, so that cosines and sines stay.
        "rope_scaling": RopeScaling(
            40.0, original_length=4096, kind="yarn", attention_factor=1.0, score_scale=mscale
        ),
    }
    vocab_size = changes.pop("vocab_size", 102400)
    fields = {**shared_fields, **changes}
    return llama(vocab_size, layers, d_model, heads, heads, d_ff, 163840, **fields)


PRESETS: dict[str, ModelConfig] = {
    "deepseek_v2_lite": _deepseek(
        27, 2048, 16, 1408, 2, mscale=0.707, dense_layers=1, dense_d_ff=10944,
        experts=64, experts_per_token=6, normalized_routes=False,
    ),
    "deepseek_v2": _deepseek(
        60, 5120, 128, 1536, 2, mscale=0.707, dense_layers=1, dense_d_ff=12288, query_latent=1536,
        experts=160, experts_per_token=6, normalized_routes=False, route_scale=16.0,
        route_groups=8, groups_per_token=3,
    ),
    "deepseek_v3": _deepseek(
        61, 7168, 128, 2048, 1, mscale=1.0, dense_layers=3, dense_d_ff=18432, query_latent=1536,
        experts=256, experts_per_token=8, router="sigmoid", route_scale=2.5,
        route_groups=8, groups_per_token=4, vocab_size=129280,
    ),
}  # fmt: skip
