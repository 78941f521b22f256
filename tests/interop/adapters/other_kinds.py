"""The cases of make.py that are no LoRA, IA3 or prompts, and those of LoRA's rarer fields: (golden
of the base, config of peft)."""

import peft

_ATTENTION = ["q_proj", "o_proj"]
# One layer is enough to tell an order of axes; the other has no adapter.
_ONE = {"target_modules": _ATTENTION, "layers_to_transform": [1]}


def _lora(**fields):
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 8, **fields})


KINDS = {
    "loha": ("llama_gqa", peft.LoHaConfig(r=3, alpha=5, **_ONE)),
    "lokr": (
        "llama_gqa",
        peft.LoKrConfig(
            r=2,
            alpha=3,
            alpha_pattern={"o_proj": 7},
            decompose_both=True,
            decompose_factor=8,
            **_ONE,
        ),
    ),
    "lokr_whole": ("llama_gqa", peft.LoKrConfig(r=16, target_modules=["v_proj", "down_proj"])),
    "vera": (
        "llama_gqa",
        peft.VeraConfig(r=8, target_modules=["q_proj", "up_proj"], layers_to_transform=[0]),
    ),
    "oft": ("llama_gqa", peft.OFTConfig(oft_block_size=8, **_ONE)),
    "oft_shared": (
        "llama_gqa",
        peft.OFTConfig(
            oft_block_size=0,
            r=4,
            coft=True,
            eps=0.5,
            block_share=True,
            use_cayley_neumann=False,
            target_modules=_ATTENTION,
        ),
    ),
    "boft": ("llama_gqa", peft.BOFTConfig(boft_block_size=4, **_ONE)),
    "adalora": (
        "llama_gqa",
        peft.AdaLoraConfig(
            init_r=4,
            target_r=2,
            lora_alpha=64,
            total_step=10,
            target_modules=_ATTENTION,
            # What is left of the ranks after training, one row for each module.
            rank_pattern={
                f"model.layers.{layer}.self_attn.{module}.lora_E": kept
                for layer, module, kept in (
                    (0, "q_proj", [True, False, True, False]),
                    (0, "o_proj", [True, True, True, True]),
                    (1, "q_proj", [False, False, False, False]),
                    (1, "o_proj", [False, True, False, False]),
                )
            },
        ),
    ),
    "gpt2_vera": ("gpt2", peft.VeraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True)),
    "norms": ("llama_gqa", peft.LNTuningConfig(target_modules=["input_layernorm", "norm"])),
    "tokens": (
        "llama_gqa",
        peft.TrainableTokensConfig(token_indices=[3, 7], target_modules=["embed_tokens"]),
    ),
    "lora_tokens": (
        "llama_gqa",
        _lora(target_modules=["q_proj"], trainable_token_indices=[5, 3, 95]),
    ),
    "lora_tokens_untied": (
        "llama_mha",
        _lora(
            target_modules=["q_proj"],
            trainable_token_indices={"embed_tokens": [1], "lm_head": [2, 4]},
        ),
    ),
    "gpt2_lora_bias": (
        "gpt2",
        _lora(target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True, lora_bias=True),
    ),
    "qwen2_lora_bias": (
        "qwen2",
        _lora(target_modules=["q_proj", "v_proj"], layers_to_transform=[1], lora_bias=True),
    ),
    "llama_lora_bias": ("llama_gqa", _lora(target_modules=["v_proj", "o_proj"], lora_bias=True)),
    "bias_all": ("gpt2", _lora(target_modules=["c_attn"], fan_in_fan_out=True, bias="all")),
    "bias_lora_only": ("qwen2", _lora(target_modules=["q_proj", "o_proj"], bias="lora_only")),
    "tied_whole": (
        "llama_gqa",
        _lora(
            target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True
        ),
    ),
    "replicated": (
        "llama_gqa",
        _lora(target_modules=["q_proj", "down_proj"], layer_replication=[[0, 2], [0, 1], [1, 2]]),
    ),
    "qwen_experts": (
        "qwen2_moe",
        _lora(
            target_modules=["v_proj"],
            target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        ),
    ),
    "parameter": (
        "llama_gqa",
        _lora(target_modules=[], target_parameters=["self_attn.o_proj.weight"]),
    ),
}
