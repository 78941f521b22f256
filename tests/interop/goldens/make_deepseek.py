"""`make.py` for DeepSeek-V2 and V3.

    python tests/interop/goldens/make_deepseek.py [NAME ...]

torch 2.13, transformers 5.24; imports none of the project.
"""

import sys

import transformers as hf
from make import Case, llama, main, v4_rope

SIZES = dict(
    hidden_size=24,
    num_hidden_layers=3,
    num_key_value_heads=4,
    kv_lora_rank=12,
    qk_nope_head_dim=6,
    qk_rope_head_dim=4,
    v_head_dim=8,
    intermediate_size=40,
    moe_intermediate_size=8,
    first_k_dense_replace=1,
    rms_norm_eps=1e-4,  # the norms of latents have 1e-6 whatever this is
)


def yarn(**changes) -> dict:
    """Past the original length, with DeepSeek's two scales."""
    shared = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    return {**shared, "rope_theta": 500.0, "beta_fast": 2.0, "beta_slow": 0.5, **changes}


def v4_deepseek(text: dict) -> dict:
    """The fields of DeepSeek's own code beside those of the class."""
    scoring = "sigmoid" if text["model_type"] == "deepseek_v3" else "softmax"
    left_out = ("qk_head_dim", "head_dim", "rope_interleave", "num_mtp_layers")
    kept = {name: value for name, value in v4_rope(text).items() if name not in left_out}
    return kept | {"scoring_func": scoring, "moe_layer_freq": 1, "aux_loss_alpha": 0.001}


CASES = {
    # As V2-Lite: queries of the states themselves, experts without groups.
    "deepseek_v2_lite": Case(
        hf.DeepseekV2ForCausalLM,
        llama(
            hf.DeepseekV2Config,
            **SIZES,
            q_lora_rank=None,
            n_routed_experts=4,
            n_shared_experts=2,
            num_experts_per_tok=2,
            rope_parameters=yarn(mscale=0.707, mscale_all_dim=0.707),
        ),
        v4_deepseek,
    ),
    "deepseek_v2": Case(
        hf.DeepseekV2ForCausalLM,
        llama(
            hf.DeepseekV2Config,
            **SIZES,
            q_lora_rank=10,
            n_routed_experts=6,
            n_shared_experts=1,
            num_experts_per_tok=2,
            topk_method="group_limited_greedy",
            n_group=3,
            topk_group=2,
            routed_scaling_factor=3.0,
            attention_bias=True,
            rope_parameters=yarn(mscale=1.0, mscale_all_dim=0.5),
        ),
        v4_deepseek,
    ),
    "deepseek_v3": Case(
        hf.DeepseekV3ForCausalLM,
        llama(
            hf.DeepseekV3Config,
            **SIZES,
            q_lora_rank=10,
            n_routed_experts=8,
            n_shared_experts=1,
            num_experts_per_tok=3,
            n_group=4,
            topk_group=2,
            routed_scaling_factor=2.5,
            rope_parameters=yarn(mscale=1.0, mscale_all_dim=1.0),
        ),
        v4_deepseek,
    ),
}

if __name__ == "__main__":
    main(sys.argv[1:], CASES)
