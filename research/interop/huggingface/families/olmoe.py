"""OLMoE (arXiv:2409.02060) in Hugging Face's names: LLaMA's layers with experts, and with norms of
queries and keys over all heads of a token."""

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from research.interop.huggingface.families import llama, olmo, qwen_moe
from research.interop.huggingface.families.fields import flag, refuse
from research.interop.huggingface.families.rope import read_rope
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig

# Where config.json leaves a field out, transformers takes the default of the class.
_DEFAULTS: dict[str, Any] = {
    **{"num_experts": 64, "num_experts_per_tok": 8, "router_aux_loss_coef": 0.01},
    **{"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
}


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json describes; `names`, the tensors, are not asked. ValueError for
    settings that our layers do not compute, such as clipped queries, keys and values."""
    values = {**_DEFAULTS, **values}
    theta, scaling = read_rope(values)
    refuse(values, partial_rotary_factor=1.0, clip_qkv=None)
    return ModelConfig(
        **llama.read_sizes(values),
        **qwen_moe.read_experts(values),
        rope_theta=theta,
        rope_scaling=scaling,
        query_norm=True,
        query_norm_over="heads",
        attention_bias="all" if flag(values, "attention_bias", False) else "none",
        tied=flag(values, "tie_word_embeddings", False),
    )


def serves(c: ModelConfig) -> bool:
    """True for LLaMA's layers with experts and norms of queries and keys over all heads."""
    wide = c.query_norm and c.query_norm_over == "heads"
    return llama.serves(c) and c.experts > 0 and wide


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json, in the spelling of transformers 4, which version 5 reads too."""
    return {
        "architectures": ["OlmoeForCausalLM"],
        "model_type": "olmoe",
        **llama.write_sizes(c),
        **qwen_moe.write_experts(c),
        "attention_bias": c.attention_bias == "all",
        "clip_qkv": None,
    }


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """LLaMA's tensors with Qwen's names of the experts, and OLMo's norms of queries and keys."""
    kept = [r for r in qwen_moe.expert_rules(c) if r.name.split(".")[-2] not in olmo.HEAD_NORMS]
    return (*kept, *olmo.head_norm_rules())


FAMILY = replace(
    llama.FAMILY,
    model_types=("olmoe",),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    renames=(),
)
