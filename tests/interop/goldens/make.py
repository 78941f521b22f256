"""Tiny random models of every family and what transformers computes with them, one .npz each beside
this file.

    python tests/interop/goldens/make.py [NAME ...]

torch 2.13, transformers 5.23 (Gemma: 5.24); imports none of the project.

`Golden` in tests/interop/golden.py reads what is written here:
    config, config_v4   config.json as save_pretrained wrote it, and as transformers 4 would have
    index               model.safetensors.index.json of a sharded checkpoint
    tensor/NAME         a saved tensor; bfloat16/NAME its bits as uint16 where it is bfloat16
    ids, mask           [B, T], the encoder's where there are two; the second row is padded
    token_types, decoder_ids, lengths [B] of the prompts, greedy [B, 12]
    logits, hidden, pooled, classes    float32, of the model as reloaded from what was saved;
           classes of whole texts [B, C], or of tokens [B, T, C]
    buckets             [2, 600]: T5's bucket of the distances -300..299, for encoder and decoder
Weights are drawn far larger than a trained model's, norms and biases too, so that each matters;
`unseen` names those that do not: key biases, which softmax does not see where nothing is rotated,
and BERT's next-sentence head. Seeds are tried until no near-tie decides a greedy token or a route,
and roundings do not grow (`shaken`): the order of float sums is then all that two right models
differ by.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from safetensors import safe_open

VOCAB, LENGTH, PADDED, DECODER, WRITTEN = 96, 24, 17, 9, 12
INPUTS = {
    "ids": "input_ids",
    "mask": "attention_mask",
    "token_types": "token_type_ids",
    "decoder_ids": "decoder_input_ids",
}
OUTPUTS = {  # by the name of an output in transformers
    "logits": "logits",
    "prediction_logits": "logits",
    "last_hidden_state": "hidden",
    "pooler_output": "pooled",
}


@dataclass(frozen=True)
class Case:
    """A class of transformers and its config; `v4` makes the config.json of transformers 4 from
    that of 5."""

    model: type
    config: hf.PreTrainedConfig
    v4: Callable[[dict], dict]
    dtype: torch.dtype = torch.float32
    length: int = LENGTH
    padded: int = PADDED  # tokens of the second row, of LENGTH
    stds: dict = field(
        default_factory=dict
    )  # by a part of the name; a large tied table repeats its words
    save: dict = field(default_factory=dict)


def v4_rope(text: dict) -> dict:
    """The rotary base and its scaling at the top, the type under its old name."""
    text = {**text}
    rope = text.pop("rope_parameters")
    scaling = (
        None
        if rope["rope_type"] == "default"
        else {k: v for k, v in rope.items() if k != "rope_theta"}
    )
    tied = text["tie_word_embeddings"]
    return v4(text) | {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": scaling,
        "tie_word_embeddings": tied,
    }


def v4(text: dict) -> dict:
    """Without what equals a default of transformers 4, which tied the head unless told
    otherwise."""
    kept = {
        key: value for key, value in text.items() if key not in ("dtype", "tie_word_embeddings")
    }
    return kept | {"torch_dtype": text["dtype"], "transformers_version": "4.57.1"}


def v4_llama1(text: dict) -> dict:
    """As of the first LLaMA: no key heads, no rotary base, no head size, nothing on biases."""
    left_out = (
        "num_key_value_heads",
        "rope_theta",
        "rope_scaling",
        "head_dim",
        "attention_bias",
        "mlp_bias",
    )
    return {key: value for key, value in v4_rope(text).items() if key not in left_out}


def v4_qwen2(text: dict) -> dict:
    """Published ones name a window and say beside it that it is not used."""
    kept = {key: value for key, value in v4_rope(text).items() if key != "layer_types"}
    return kept | {"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 1}


def v4_moe(text: dict) -> dict:
    """The number of experts under its older name, and nothing says which layers have a window."""
    text = {key: value for key, value in v4_rope(text).items() if key != "layer_types"}
    experts = text.pop("num_local_experts", None)
    return text | ({"num_experts": experts} if experts else {})


def v4_gpt_oss(text: dict) -> dict:
    """The slope of the gate was a constant of the code, and every second layer is local unless the
    file says otherwise."""
    left_out = ("swiglu_alpha", "layer_types")
    return {key: value for key, value in v4_rope(text).items() if key not in left_out}


def v4_gemma(text: dict) -> dict:
    """Published ones name the activation twice, of which the older name said another one."""
    return v4_rope(text) | {"hidden_act": "gelu"}


def v4_gemma2(text: dict) -> dict:
    """Nothing says which layers are local: every second one is."""
    kept = {key: value for key, value in v4_rope(text).items() if key != "layer_types"}
    return kept | {"hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid"}


def v4_gemma3(text: dict) -> dict:
    """Both rotary bases at the top, and the period of the global layers for their list."""
    text = {**text}
    rope, types = text.pop("rope_parameters"), text.pop("layer_types")
    wide = rope["full_attention"]
    return v4(text) | {
        "rope_theta": wide["rope_theta"],
        "rope_local_base_freq": rope["sliding_attention"]["rope_theta"],
        "rope_scaling": {"rope_type": "linear", "factor": wide["factor"]},
        "sliding_window_pattern": types.index("full_attention") + 1,
    }


def v4_phi3(text: dict) -> dict:
    """The first name of LongRoPE, and the lengths beside it."""
    text = {**text}
    rope = text.pop("rope_parameters")
    scaling = {name: rope[name] for name in ("short_factor", "long_factor") if name in rope}
    return v4(text) | {
        "rope_theta": rope["rope_theta"],
        "partial_rotary_factor": rope["partial_rotary_factor"],
        "rope_scaling": {"type": "su", **scaling} if scaling else None,
        "tie_word_embeddings": text["tie_word_embeddings"],
    }


def v4_phimoe(text: dict) -> dict:
    """The scaling's name under an older key; two experts go without saying."""
    text = v4_rope(text)
    kind = text["rope_scaling"].pop("rope_type")
    text["rope_scaling"]["type"] = kind
    return {key: value for key, value in text.items() if key != "num_experts_per_tok"}


def v4_olmo3(text: dict) -> dict:
    """The parameters of the layers that see all, and no list of the layers."""
    rope = text["rope_parameters"]["full_attention"]
    kept = {key: value for key, value in text.items() if key != "layer_types"}
    return v4_rope({**kept, "rope_parameters": rope})


def v4_smollm3(text: dict) -> dict:
    """The period alone."""
    left_out = ("no_rope_layers", "layer_types")
    return {key: value for key, value in v4_rope(text).items() if key not in left_out}


def v4_neox(text: dict) -> dict:
    """Names of its own for the rotary fields."""
    text = {**text}
    rope = text.pop("rope_parameters")
    own = {"rotary_emb_base": rope["rope_theta"], "rotary_pct": rope["partial_rotary_factor"]}
    return v4(text) | own | {"tie_word_embeddings": False}


def v4_t5(text: dict) -> dict:
    """t5-small says nothing of its activation; version 1.1 is told apart by an untied head."""
    left_out = [
        "is_gated_act",
        "dense_act_fn",
        "scale_decoder_outputs",
        "relative_attention_max_distance",
    ]
    gated = text["is_gated_act"]
    left_out += [] if gated else ["feed_forward_proj"]
    old = {key: value for key, value in v4(text).items() if key not in left_out}
    return old | ({"tie_word_embeddings": False} if gated else {})


def llama(config=hf.LlamaConfig, theta=10000.0, rope={}, **changes):
    shared = dict(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": theta, **rope},
    )
    return config(**{**shared, **changes})


def gemma(config, **changes):
    """A window shorter than the text, scores not scaled by the head size, and `changes`."""
    shared = dict(
        num_hidden_layers=4,
        head_dim=8,
        query_pre_attn_scalar=24,
        sliding_window=5,
        pad_token_id=0,
        rms_norm_eps=1e-4,
        tie_word_embeddings=True,
    )
    return llama(config, **{**shared, **changes})


def bert(**changes):
    return hf.BertConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        **changes,
    )


def t5(**changes):
    return hf.T5Config(
        vocab_size=VOCAB,
        d_model=32,
        d_kv=4,
        d_ff=32,
        num_layers=2,
        num_decoder_layers=3,
        num_heads=4,
        decoder_start_token_id=0,
        **changes,
    )


# Three regimes of Llama 3's scaling: of the wavelengths 6, 30, 140 and 664 the first stays, the
# second lies between.
ROPE3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
T5 = {
    "shared": 0.5,
    "Attention.q.": 0.1,
}  # its scores are not scaled by the head size: its queries are small instead
# Embeddings are multiplied by sqrt(32), and logits by the same table.
GEMMA = {"embed_tokens": 0.15}
MARIAN = hf.MarianConfig(
    vocab_size=VOCAB,
    d_model=24,
    encoder_layers=2,
    decoder_layers=3,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=32,
    decoder_ffn_dim=32,
    activation_function="relu",
    scale_embedding=True,
    max_position_embeddings=64,
    pad_token_id=95,
    decoder_start_token_id=95,
    eos_token_id=0,
    forced_eos_token_id=None,
)
GPT2 = hf.GPT2Config(
    vocab_size=VOCAB, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
)
LLAMA = hf.LlamaForCausalLM
CASES = {
    "gpt2": Case(hf.GPT2LMHeadModel, GPT2, v4),
    "llama_mha": Case(LLAMA, llama(num_key_value_heads=4, rms_norm_eps=1e-6), v4_llama1),
    "llama_gqa": Case(
        LLAMA, llama(theta=5e5, rms_norm_eps=1e-2, tie_word_embeddings=True), v4_rope
    ),
    "llama_mqa": Case(LLAMA, llama(theta=100.0, num_key_value_heads=1), v4_rope),
    "llama_rope3": Case(LLAMA, llama(theta=500.0, rope=ROPE3), v4_rope),
    "llama_wide": Case(
        LLAMA, llama(head_dim=16, attention_bias=True, mlp_bias=True, theta=1000.0), v4_rope
    ),
    "llama_bfloat16": Case(LLAMA, llama(tie_word_embeddings=True), v4_rope, dtype=torch.bfloat16),
    "llama_sharded": Case(LLAMA, llama(), v4_rope, save={"max_shard_size": "40KB"}),
    "mistral": Case(hf.MistralForCausalLM, llama(hf.MistralConfig, sliding_window=6), v4_rope),
    "mixtral": Case(
        hf.MixtralForCausalLM,
        llama(
            hf.MixtralConfig,
            theta=1e6,
            intermediate_size=32,
            num_local_experts=4,
            num_experts_per_tok=2,
        ),
        v4_rope,
    ),
    "qwen2": Case(
        hf.Qwen2ForCausalLM, llama(hf.Qwen2Config, theta=1e6, tie_word_embeddings=True), v4_qwen2
    ),
    "qwen3": Case(
        hf.Qwen3ForCausalLM,
        llama(hf.Qwen3Config, theta=1e6, head_dim=16, rms_norm_eps=1e-6),
        v4_rope,
    ),
    "gemma": Case(
        hf.GemmaForCausalLM,
        llama(hf.GemmaConfig, head_dim=16, pad_token_id=0, tie_word_embeddings=True),
        v4_gemma,
        stds=GEMMA,
    ),
    # Soft caps of the size of what they cap.
    "gemma2": Case(
        hf.Gemma2ForCausalLM,
        gemma(hf.Gemma2Config, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
        v4_gemma2,
        stds=GEMMA,
    ),
    "gemma3": Case(
        hf.Gemma3ForCausalLM,
        gemma(
            hf.Gemma3TextConfig,
            num_hidden_layers=7,
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
            },
        ),
        v4_gemma3,
        stds=GEMMA,
    ),
    "bert": Case(hf.BertModel, bert(), v4),
    "bert_mlm": Case(hf.BertForMaskedLM, bert(layer_norm_eps=1e-3), v4),
    "bert_pretraining": Case(hf.BertForPreTraining, bert(), v4),
    "bert_classifier": Case(hf.BertForSequenceClassification, bert(num_labels=3), v4),
    "t5": Case(hf.T5ForConditionalGeneration, t5(), v4_t5, length=72, stds=T5),
    "t5_v1_1": Case(
        hf.T5ForConditionalGeneration,
        t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        v4_t5,
        length=72,
        stds=T5,
    ),
    "marian": Case(
        hf.MarianMTModel,
        MARIAN,
        v4,
        stds={"bias": 0.1, "shared": 0.1, "fc": 0.5, "v_proj": 0.15, "out_proj": 0.15},
    ),
}

# Further decoders. Scalings by the length of a text are those of its batch in transformers, so both
# rows are on the same side of the original length.
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.05, 2.3, 6.5],
    "partial_rotary_factor": 0.75,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
CASES |= {
    # Longer than its 22 positions; what it writes is not.
    "llama_dynamic": Case(
        LLAMA, llama(rope=DYNAMIC, max_position_embeddings=22), v4_rope, padded=LENGTH
    ),
    "llama_yarn": Case(LLAMA, llama(rope=YARN), v4_rope),
    # The switch from short to long factors is within what it writes.
    "phi3": Case(
        hf.Phi3ForCausalLM,
        llama(
            hf.Phi3Config,
            theta=500.0,
            rope=LONGROPE,
            original_max_position_embeddings=12,
            pad_token_id=0,
            num_attention_heads=4,
        ),
        v4_phi3,
        # LongRoPE multiplies the scores by 1.7, and their roundings.
        stds={"qkv": 0.15},
    ),
    "phi3_window": Case(
        hf.Phi3ForCausalLM,
        llama(hf.Phi3Config, sliding_window=6, pad_token_id=0, num_key_value_heads=4),
        v4_phi3,
    ),
    # Its texts are shorter than the original length, beyond which its class is wrong. Several
    # experts are in reach.
    "phimoe": Case(
        hf.PhimoeForCausalLM,
        llama(
            hf.PhimoeConfig,
            theta=500.0,
            rope={
                **{"rope_type": "longrope", "original_max_position_embeddings": 40},
                **{"short_factor": [1.0, 1.1, 1.3, 1.5], "long_factor": [1.0, 2.0, 3.0, 6.0]},
                **{"short_mscale": 1.25, "long_mscale": 1.25},
            },
            num_local_experts=4,
            router_jitter_noise=0.3,
            attention_bias=True,
            lm_head_bias=True,
            pad_token_id=0,
        ),
        v4_phimoe,
    ),
    "olmo2": Case(hf.Olmo2ForCausalLM, llama(hf.Olmo2Config, theta=5e5, pad_token_id=0), v4_rope),
    "olmo3": Case(
        hf.Olmo3ForCausalLM,
        llama(
            hf.Olmo3Config,
            num_hidden_layers=5,
            sliding_window=5,
            pad_token_id=0,
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
                "full_attention": {**YARN, "rope_theta": 5e5, "attention_factor": 1.2},
            },
        ),
        v4_olmo3,
    ),
    "smollm3": Case(
        hf.SmolLM3ForCausalLM,
        llama(
            hf.SmolLM3Config,
            theta=100.0,
            num_hidden_layers=5,
            no_rope_layer_interval=2,
            pad_token_id=0,
            tie_word_embeddings=True,
        ),
        v4_smollm3,
    ),
    "ministral": Case(
        hf.MinistralForCausalLM,
        llama(
            hf.MinistralConfig,
            head_dim=8,
            num_hidden_layers=3,
            sliding_window=5,
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        ),
        v4_rope,
    ),
    # Its config.json is of transformers 5 alone.
    "ministral3": Case(
        hf.Ministral3ForCausalLM,
        llama(
            hf.Ministral3Config,
            head_dim=8,
            pad_token_id=0,
            rope={
                **YARN,
                "original_max_position_embeddings": 5,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.4,
            },
        ),
        dict,
    ),
    # A window in the first layer alone.
    "qwen2_moe": Case(
        hf.Qwen2MoeForCausalLM,
        llama(
            hf.Qwen2MoeConfig,
            **EXPERTS,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=24,
            use_sliding_window=True,
            sliding_window=6,
        ),
        v4_moe,
    ),
    "qwen3_moe": Case(
        hf.Qwen3MoeForCausalLM,
        llama(
            hf.Qwen3MoeConfig,
            **EXPERTS,
            theta=1e6,
            head_dim=16,
            moe_intermediate_size=16,
            norm_topk_prob=True,
        ),
        v4_moe,
    ),
    "qwen3_moe_dense": Case(
        hf.Qwen3MoeForCausalLM,
        llama(
            hf.Qwen3MoeConfig,
            **EXPERTS,
            head_dim=16,
            moe_intermediate_size=16,
            norm_topk_prob=True,
            mlp_only_layers=[0],
        ),
        v4_moe,
    ),
    "olmoe": Case(
        hf.OlmoeForCausalLM,
        llama(hf.OlmoeConfig, **EXPERTS, intermediate_size=16, pad_token_id=0),
        v4_moe,
    ),
    "gpt_oss": Case(
        hf.GptOssForCausalLM,
        llama(
            hf.GptOssConfig,
            theta=500.0,
            rope={**YARN, "truncate": False},
            num_hidden_layers=3,
            head_dim=16,
            sliding_window=5,
            intermediate_size=16,
            num_local_experts=4,
            num_experts_per_tok=2,
            swiglu_limit=0.9,
            attention_bias=True,
        ),
        v4_gpt_oss,
    ),
    "granite": Case(
        hf.GraniteForCausalLM,
        llama(
            hf.GraniteConfig,
            embedding_multiplier=3.0,
            residual_multiplier=0.6,
            attention_multiplier=0.2,
            logits_scaling=0.7,
            tie_word_embeddings=True,
        ),
        v4_rope,
    ),
    "gpt_neox": Case(
        hf.GPTNeoXForCausalLM,
        hf.GPTNeoXConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 100.0,
                "partial_rotary_factor": 0.25,
            },
        ),
        v4_neox,
    ),
    "opt": Case(
        hf.OPTForCausalLM,
        hf.OPTConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
        ),
        v4,
    ),
}


def randomise(model: torch.nn.Module, stds: dict[str, float], rng: np.random.Generator) -> None:
    """Norm scales in 0.5..1.5, the rest normal: biases of std 0.3, matrices 0.2, and what `stds`
    says of either."""
    named = dict(model.named_parameters()) | {
        n: b
        for n, b in model.named_buffers()
        if n.endswith(("final_logits_bias", "e_score_correction_bias"))
    }
    for name, weight in named.items():
        if "embed_positions" in name and not weight.requires_grad:
            continue  # Marian's and Pegasus' sinusoids
        if weight.ndim == 1 and name.endswith("weight"):
            # Gemma's norms scale by 1 + w.
            drawn = rng.uniform(0.5, 1.5, weight.shape) - model.config.model_type.startswith(
                "gemma"
            )
        else:
            usual = 0.3 if name.endswith("bias") else 0.2
            drawn = rng.normal(
                0, next((std for part, std in stds.items() if part in name), usual), weight.shape
            )
        weight.data.copy_(torch.from_numpy(drawn))


def inputs(case: Case, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Two rows, the second shorter, with what the class reads beside them."""
    shape = (2, case.length)
    mask = (np.arange(case.length) < [[case.length], [case.length * case.padded // LENGTH]]).astype(
        np.int64
    )
    fields = {"ids": rng.integers(3, VOCAB - 1, shape), "mask": mask}
    if case.config.model_type == "bert":
        fields["token_types"] = (np.arange(case.length) >= [[10], [6]]).astype(np.int64) * mask
    if case.config.is_encoder_decoder:
        starts = np.full((2, 1), case.config.decoder_start_token_id)
        fields["decoder_ids"] = np.concatenate(
            [starts, rng.integers(3, VOCAB - 1, (2, DECODER - 1))], axis=1
        )
    return fields


def outputs(model: torch.nn.Module, fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the model says of them, float32."""
    arguments = {INPUTS[key]: torch.from_numpy(value) for key, value in fields.items()}
    with torch.no_grad():
        found = dict(model(**arguments))
        if "decoder_ids" not in fields and is_encoder(model):
            found |= {
                key: value
                for key, value in model.base_model(**arguments).items()
                if value is not None
            }
    known = {OUTPUTS[key]: value.numpy() for key, value in found.items() if key in OUTPUTS}
    name = type(model).__name__
    if name.endswith(("ForSequenceClassification", "ForTokenClassification")):
        known["classes"] = known.pop("logits")
    if name.endswith("ForQuestionAnswering"):
        ends = found["start_logits"], found["end_logits"]
        known["classes"] = torch.stack(ends, axis=-1).numpy()
    return known


def is_encoder(model: torch.nn.Module) -> bool:
    """True for models that see both sides of a text."""
    config = model.config
    return (
        not config.is_encoder_decoder
        and "CausalLM" not in type(model).__name__
        and (config.model_type not in ("gpt2",))
    )


def unlike(found: dict, other: dict, fields: dict) -> float:
    """The largest difference where nothing is padding."""
    real = fields["mask"] > 0
    differences = []
    for key, value in found.items():
        apart = np.abs(value - other[key])
        differences.append(np.max(apart[real] if apart.shape[:2] == real.shape else apart))
    return float(max(differences))


def greedy(model: torch.nn.Module, fields: dict, lengths: list[int]) -> tuple[np.ndarray, float]:
    """The likeliest continuation of each row's first `length` ids, written without a cache, and its
    least margin."""
    rows, margin = [], np.inf
    for ids, length in zip(fields["ids"], lengths):
        two, source = "decoder_ids" in fields, ids[None, :length]
        written = fields["decoder_ids"][:1, :1] if two else source
        start = written.shape[1]
        for _ in range(WRITTEN):
            part = {"ids": source, "decoder_ids": written} if two else {"ids": written}
            logits = outputs(model, part)["logits"][0, -1]
            second, best = np.argsort(logits)[-2:]
            margin = min(margin, float(logits[best] - logits[second]))
            written = np.append(written, [[best]], axis=1)
        rows.append(written[0, start:])
    return np.array(rows), margin


def route_margin(model: torch.nn.Module, fields: dict, rows: np.ndarray) -> float:
    """How far the last chosen expert's score is above the first left out, at worst, also over what
    was written."""
    least, texts = np.inf, [fields["ids"], *rows]
    for ids in texts:
        with torch.no_grad():
            scores = model(
                input_ids=torch.from_numpy(np.atleast_2d(ids)), output_router_logits=True
            ).router_logits
        for layer in scores:
            ranked = torch.sort(layer, dim=-1, descending=True).values
            least = min(least, float((ranked[:, 1] - ranked[:, 2]).min()))
            if ids is fields["ids"]:
                assert len(torch.unique(torch.topk(layer, 2).indices)) == 4, (
                    "an expert has no token"
                )
    return least


def saved(case: Case, model: torch.nn.Module, folder: str) -> dict[str, np.ndarray]:
    """What save_pretrained wrote, as arrays."""
    model.save_pretrained(folder, **case.save)
    text = (Path(folder) / "config.json").read_text()
    fields = {
        "config": np.array(text),
        "config_v4": np.array(json.dumps(case.v4(json.loads(text)), indent=2)),
    }
    index = Path(folder) / "model.safetensors.index.json"
    if index.exists():
        fields["index"] = np.array(index.read_text())
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                tensor = file.get_tensor(name)
                narrow = tensor.dtype == torch.bfloat16
                kind, tensor = (
                    ("bfloat16", tensor.view(torch.uint16)) if narrow else ("tensor", tensor)
                )
                fields[f"{kind}/{name}"] = tensor.numpy()
    return fields


def unseen(model: torch.nn.Module, fields: dict, known: dict) -> list[str]:
    """Weights that can change without changing an output by 2e-3."""
    found, rng = [], torch.Generator().manual_seed(0)
    for name, weight in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        before = weight.data.clone()
        if weight.dtype == torch.float32 and "rotary" not in name:
            weight.data.add_(0.1 * torch.randn(weight.shape, generator=rng))
            if unlike(known, outputs(model, fields), fields) < 2e-3:
                found.append(name)
            weight.data.copy_(before)
    return found


def shaken(model: torch.nn.Module, fields: dict, known: dict) -> float:
    """By how much an output changes where each weight is off by 1e-6 of itself, some sixteen
    roundings of float32."""
    rng = torch.Generator().manual_seed(0)
    before = {name: weight.data.clone() for name, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.data.mul_(1 + 1e-6 * torch.randn(weight.shape, generator=rng))
    change = unlike(known, outputs(model, fields), fields)
    for name, weight in model.named_parameters():
        weight.data.copy_(before[name])
    return change


def golden(case: Case, seed: int) -> tuple[dict[str, np.ndarray], str]:
    """The fields of a case, and why this seed does not do, if so."""
    rng = np.random.default_rng(seed)
    model = case.model(case.config).eval()
    if case.config.model_type == "mt5" or (
        case.config.model_type == "t5" and not case.config.scale_decoder_outputs
    ):
        model.lm_head.weight = torch.nn.Parameter(
            torch.empty_like(model.lm_head.weight)
        )  # version 1.1 is not tied
    randomise(model, case.stds, rng)
    fields = inputs(case, rng)
    with tempfile.TemporaryDirectory() as folder:
        files = saved(case, model.to(case.dtype), folder)
        model = case.model.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    known, lengths, more = outputs(model, fields), [10, 7], {}
    if (change := shaken(model, fields, known)) > 6e-5:
        return {}, f"roundings grow to {change:.1e}"
    if "logits" in known and not is_encoder(model):
        written, margin = greedy(model, fields, lengths)
        more = {"lengths": np.array(lengths), "greedy": written}
        if margin < 1e-3 or min(len(set(row)) for row in written) < 3 or np.array_equal(*written):
            return {}, f"margin {margin:.1e}, or a text of few words or twice the same"
    if case.config.model_type in (
        "mixtral",
        "phimoe",
        "qwen2_moe",
        "qwen3_moe",
        "olmoe",
        "gpt_oss",
    ):
        texts = [
            np.concatenate([ids[:n], row]) for ids, n, row in zip(fields["ids"], lengths, written)
        ]
        if (margin := route_margin(model, fields, texts)) < 1e-3:
            return {}, f"routes {margin:.1e} apart"
    if case.config.model_type == "t5":
        distances = torch.arange(-300, 300)
        bucket = model.encoder.block[0].layer[0].SelfAttention._relative_position_bucket
        more["buckets"] = np.stack(
            [bucket(distances, bidirectional=both).numpy() for both in (True, False)]
        )
    largest = max(np.abs(value).max() for value in known.values())
    print(f"  |output| up to {largest:.1f}; does not matter: {unseen(model, fields, known)}")
    narrow = {key: value.astype(np.int32) for key, value in {**fields, **more}.items()}
    return {**files, **narrow, **known}, ""


def main(names: list[str], cases: dict[str, Case]) -> None:
    """Writes the goldens of these cases, of all of them without `names`."""
    hf.utils.logging.disable_progress_bar()
    for name in names or cases:
        for seed in range(200):
            fields, why_not = golden(cases[name], seed)
            if not why_not:
                break
        else:
            raise ValueError(f"{name}: no seed does; the last: {why_not}")
        path = Path(__file__).with_name(f"{name}.npz")
        np.savez_compressed(path, **fields)
        print(f"{name}: seed {seed}, {path.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:], CASES)
