"""The kinds of adapters that are read, by peft's `PeftType`, and the fields of each that give its
tensors their meaning."""

from dataclasses import dataclass

LORA, ADALORA, VERA = "LORA", "ADALORA", "VERA"
LOHA, LOKR, OFT, BOFT = "LOHA", "LOKR", "OFT", "BOFT"
IA3, LN_TUNING, TRAINABLE_TOKENS = "IA3", "LN_TUNING", "TRAINABLE_TOKENS"
PREFIX_TUNING, PROMPT_TUNING, P_TUNING = "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"
PROMPTS = (PREFIX_TUNING, PROMPT_TUNING, P_TUNING)


@dataclass(frozen=True)
class Kind:
    """The names of one kind's fields, "" for what it has not.

    rank, default  the field of the rank, and peft's default of it
    alpha          the field that is divided by the rank
    dropout        the field of the dropout of its inputs
    bias           the value of `bias` by which its modules' biases are trained
    """

    rank: str = ""
    default: int = 8
    alpha: str = ""
    dropout: str = ""
    bias: str = ""


KINDS = {
    LORA: Kind("r", 8, "lora_alpha", "lora_dropout", "lora_only"),
    ADALORA: Kind("init_r", 12, "lora_alpha", "lora_dropout", "lora_only"),
    VERA: Kind("r", 256, "", "vera_dropout", "vera_only"),
    LOHA: Kind("r", 8, "alpha"),
    LOKR: Kind("r", 8, "alpha"),
    OFT: Kind(bias="oft_only"),
    BOFT: Kind(bias="boft_only"),
    IA3: Kind(),
    LN_TUNING: Kind(),
    TRAINABLE_TOKENS: Kind(),
    **dict.fromkeys(PROMPTS, Kind()),
}
# Fields that change nothing in what the tensors compute: how modules were chosen, how tensors were
# initialized, where they came from, what a tensor's shape says too.
SILENT = {
    "peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision",
    "inference_mode", "target_modules", "target_parameters", "exclude_modules",
    "layers_to_transform", "layers_pattern", "modules_to_save", "fan_in_fan_out", "megatron_core",
    "eva_config", "loftq_config", "corda_config", "lora_ga_config", "runtime_config",
    "qalora_group_size", "init_ia3_weights", "feedforward_modules",
    "num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers",
    "num_transformer_submodules", "prompt_tuning_init", "prompt_tuning_init_text",
    "tokenizer_name_or_path", "tokenizer_kwargs", "prefix_projection", "encoder_hidden_size",
    "init_weights", "encoder_reparameterization_type", "encoder_num_layers", "encoder_dropout",
    "rank_dropout", "module_dropout", "rank_dropout_scale", "use_effective_conv2d",
    "decompose_both", "decompose_factor", "projection_prng_key", "save_projection", "d_initial",
    "oft_block_size", "boft_block_size", "boft_block_num", "boft_n_butterfly_factor",
    "boft_dropout", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight",
    "total_step",
}  # fmt: skip
# Fields that say how OFT makes a rotation of its numbers, with peft's defaults.
ROTATION = {
    "coft": False,
    "eps": 6e-5,
    "block_share": False,
    "use_cayley_neumann": True,
    "num_cayley_neumann_terms": 5,
}
READ = {
    "r", "init_r", "alpha", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora",
    "init_lora_weights", "bias", "lora_bias", "ensure_weight_tying", "layer_replication",
    "trainable_token_indices", "token_indices", "lora_dropout", "vera_dropout", *ROTATION,
}  # fmt: skip

# task_type of models with labels, by their `labels_over`.
LABEL_TASKS = {"text": "SEQ_CLS", "tokens": "TOKEN_CLS", "spans": "QUESTION_ANS"}
