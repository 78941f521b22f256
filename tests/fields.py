"""Every field of an experiment, and one case for each: a tiny run that uses it, and another value.

A case is (what the run has beside `TINY`, the other value). A field of one objective is named with
it: "objective.masked_lm.share".
"""

import dataclasses
import json
from collections.abc import Iterator
from types import UnionType
from typing import Any, get_args, get_type_hints

from research.experiment.config import Experiment, make_experiment
from research.objectives.choose import OBJECTIVES

TINY = {
    **{"model.vocab_size": 128, "model.layers": 2, "model.d_model": 8, "model.d_ff": 16},
    **{"model.heads": 2, "model.kv_heads": 2, "model.head_size": 4, "model.max_length": 16},
    **{"data.sequence_length": 16, "data.batch_size": 2, "data.tokenizer": "bytes"},
    **{"precision.compute": "float32", "train.steps": 20, "optimizer.warmup_steps": 2},
}

# Runs that use what the tiny one does not.
WINDOW = {"model.window": 4}
GLOBAL = {**WINDOW, "model.global_every": 2}
SCALED = {"model.rope_scaling.factor": 2.0, "model.rope_scaling.original_length": 16}
LINEAR = {"model.rope_scaling.factor": 2.0, "model.rope_scaling.kind": "linear"}
DYNAMIC = {"model.rope_scaling.factor": 2.0, "model.rope_scaling.kind": "dynamic"}
YARN = {**SCALED, "model.rope_scaling.kind": "yarn"}
# YaRN's ramp lies within the two pairs of a head where the original length is long.
RAMP = {**YARN, "model.rope_scaling.original_length": 4096}
LONGROPE = {
    **{"model.rope_scaling.kind": "longrope", "model.rope_scaling.original_length": 8},
    **{"model.rope_scaling.short_factors": (1.0, 2.0)},
    **{"model.rope_scaling.long_factors": (1.0, 4.0)},
}
LEARNED = {"model.position": "learned"}
LAYER_NORM = {"model.norm": "layer"}
EXPERTS = {"model.experts": 4}
SHARED = {**EXPERTS, "model.shared_d_ff": 8}
DENSE_FIRST = {
    **EXPERTS,
    **{"model.layers": 3, "model.dense_layers": 1, "model.dense_d_ff": 8},
}
LATENT = {"model.kv_latent": 4, "model.rotary_size": 2}
MASKED = {"model.kind": "encoder", "objective.name": "masked_lm"}
HEAD = {**MASKED, "model.tied": True, "model.mlm_head": True}
CLASSES = {**MASKED, "objective.name": "classification", "model.pooler": True, "model.labels": 3}
TAGS = {**MASKED, "objective.name": "token_classification", "model.labels": 3}
TAGS |= {"model.labels_over": "tokens"}
ANSWERS = {**MASKED, "objective.name": "question_answering", "model.labels": 2}
ANSWERS |= {"model.labels_over": "spans", "objective.overlap": 2}
SPANS = {
    **{"model.kind": "encoder_decoder", "model.encoder_layers": 1},
    "objective.name": "span_corruption",
}
PAIRS = {**SPANS, "objective.name": "translation"}
POLICY = {"objective.name": "policy", "data.batch_size": 4, "objective.samples": 2}
POLICY |= {"objective.max_tokens": 4}
CHAT = {"objective.name": "chat"}
DISTIL = {"objective.name": "distillation"}
WRITES = {**POLICY, "objective.name": "on_policy_distillation"}
PREFER = {"objective.name": "preference"}
JUDGE = {"objective.name": "judgement"}
REWARD = {"objective.name": "reward", "model.labels": 1}
SIMPO = {**PREFER, "objective.preference_loss": "simpo"}
LORA = {"tune.method": "lora", "lora.rank": 2}
ADAPTER = {"tune.method": "adapter", "tune.bottleneck": 2}
PROMPT = {"tune.method": "prompt", "tune.virtual_tokens": 2}
CODES = {**LORA, "quantize.format": "int8"}
MUON = {"optimizer.name": "muon"}
ADAFACTOR = {"optimizer.name": "adafactor"}
SPIKES = {"skip.sigmas": 6.0}
TWO = {"mesh": "fsdp:2"}
IMAGE = {f"model.image.{name}": n for name, n in {"layers": 2, "size": 8, "patch": 2}.items()}
IMAGE |= {"model.image.d_model": 8, "model.image.heads": 2, "model.image.d_ff": 12}
SOUND = {f"model.sound.{name}": n for name, n in {"layers": 2, "mels": 4, "frames": 20}.items()}
SOUND |= {"model.sound.d_model": 8, "model.sound.heads": 2, "model.sound.d_ff": 12}
MEDIA = {**IMAGE, "objective.name": "media_chat"}
CONTRAST = {**IMAGE, "objective.name": "contrastive"}
SHUFFLE = {**IMAGE, "model.image.projector": "shuffle"}

CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "model.kind": (MASKED, "decoder"),  # refused: masked_lm trains encoders
    "model.vocab_size": ({}, 136),
    "model.layers": ({}, 3),
    "model.encoder_layers": (SPANS, 2),
    "model.d_model": ({}, 16),
    "model.heads": ({}, 4),
    "model.kv_heads": ({}, 1),
    "model.head_size": ({}, 8),
    "model.d_ff": ({}, 8),
    "model.max_length": (LEARNED, 32),
    "model.position": ({}, "sinusoidal"),
    "model.position_offset": (LEARNED, 2),
    "model.score_offsets": ({}, True),
    "model.encoder_positions": ({**SPANS, **LEARNED}, True),
    "model.rope_theta": ({}, 500.0),
    "model.rope_scaling.factor": (SCALED, 4.0),
    "model.rope_scaling.low_factor": (SCALED, 0.5),
    "model.rope_scaling.high_factor": (SCALED, 8.0),
    "model.rope_scaling.original_length": (SCALED, 32),
    "model.rope_scaling.kind": ({"model.rope_scaling.factor": 2.0}, "linear"),
    "model.rope_scaling.beta_fast": ({**RAMP, "model.rope_scaling.truncate": False}, 2000.0),
    "model.rope_scaling.beta_slow": (RAMP, 30.0),
    "model.rope_scaling.truncate": (RAMP, False),
    "model.rope_scaling.attention_factor": (YARN, 1.5),
    "model.rope_scaling.score_scale": (YARN, 1.0),
    "model.rope_scaling.short_factors": (LONGROPE, (1.0, 3.0)),
    "model.rope_scaling.long_factors": (LONGROPE, (1.0, 3.0)),
    "model.query_growth": (YARN, 0.5),
    "model.rotary_size": ({}, 2),
    "model.window": ({}, 4),
    "model.global_every": (WINDOW, 2),
    "model.unrotated_every": ({}, 2),
    "model.layer_kinds": ({}, ("unrotated", "local")),
    "model.local_rope_theta": (GLOBAL, 500.0),
    "model.norm": ({}, "layer"),
    "model.norm_bias": (LAYER_NORM, False),
    "model.embedding_norm": ({}, True),
    "model.norm_after": ({}, True),
    "model.first_norm": ({}, False),
    "model.branch_norm": ({}, True),
    "model.norm_before": ({"model.branch_norm": True}, False),
    "model.branch_scale": ({}, 0.5),
    "model.layer_scale": ({}, True),
    "model.parallel": ({}, True),
    "model.norm_offset": ({}, 1.0),
    "model.norm_eps": ({}, 1e-3),
    "model.query_norm": ({}, True),
    "model.query_norm_over": ({"model.query_norm": True}, "heads"),
    "model.activation": ({}, "relu"),
    "model.gated": ({}, False),
    "model.gate_slope": ({}, 1.7),
    "model.gate_limit": ({}, 0.1),
    "model.up_offset": ({}, 1.0),
    "model.attention_bias": ({}, "qkv"),
    "model.mlp_bias": ({}, True),
    "model.attention_scale": ({}, 0.3),
    "model.attention_softcap": ({}, 5.0),
    "model.attention_sinks": ({}, True),
    "model.embedding_scale": ({}, 2.0),
    "model.experts": ({}, 4),
    "model.experts_per_token": (EXPERTS, 1),
    "model.normalized_routes": (EXPERTS, False),
    "model.router_logit_bias": (EXPERTS, True),
    "model.shared_d_ff": (EXPERTS, 8),
    "model.shared_gate": (SHARED, False),
    "model.dense_layers": (DENSE_FIRST, 2),
    "model.dense_d_ff": (DENSE_FIRST, 12),
    "model.router": (EXPERTS, "sigmoid"),
    "model.router_jitter": ({**EXPERTS, "model.router": "sparsemixer"}, 0.3),
    "model.route_groups": (EXPERTS, 2),
    "model.groups_per_token": ({**EXPERTS, "model.route_groups": 2}, 2),
    "model.route_scale": (EXPERTS, 2.0),
    "model.kv_latent": (LATENT, 8),
    "model.query_latent": (LATENT, 4),
    "model.value_size": (LATENT, 2),
    "model.token_types": (MASKED, 2),
    "model.decoder_start": (PAIRS, "end"),
    "model.mels": (PAIRS, 8),  # refused: no objective has sounds for an encoder-decoder
    "model.frames": (PAIRS, 24),
    "model.tied": ({}, True),
    "model.head_scale": ({}, 0.5),
    "model.logit_softcap": ({}, 5.0),
    "model.pooler": (CLASSES, False),  # refused: nothing else reads the text for its class
    "model.pooling": (CLASSES, "mean"),
    "model.pooler_layer": (CLASSES, "relu"),
    "model.transform_bias": (HEAD, False),
    "model.mlm_head": ({**MASKED, "model.tied": True}, True),
    "model.head_bias": ({}, True),
    "model.labels": (CLASSES, 2),
    "model.labels_over": (CLASSES, "tokens"),  # refused: the objective reads whole texts
    **{
        f"model.image.{name}": (IMAGE, other)
        for name, other in {
            **{"form": "clip", "layers": 3, "size": 16, "patch": 4, "d_model": 16, "heads": 4},
            **{"d_ff": 16, "read_before": 1, "projector": "mlp", "frames": 2, "token": 3},
            **{"attention": "block"},
        }.items()
    },
    "model.image.merge": (SHUFFLE, 2),
    **{
        f"model.sound.{name}": (SOUND, other)
        for name, other in {
            **{"layers": 3, "mels": 5, "frames": 40, "d_model": 16, "heads": 4, "d_ff": 16},
            **{"projector": "linear", "stack": 2, "token": 3},
        }.items()
    },
    "model.dropout": ({}, 0.1),
    "model.embedding_noise": ({}, 5.0),
    "model.router_loss": (EXPERTS, 0.1),
    "model.init": ({}, "xavier"),
    "model.init_std": ({}, 0.1),
    "tune.method": ({}, "ia3"),
    "tune.also": (LORA, "scale"),
    "tune.bottleneck": (ADAPTER, 3),
    "tune.placement": (ADAPTER, "pfeiffer"),
    "tune.virtual_tokens": (PROMPT, 3),
    "lora.rank": (LORA, 3),
    "lora.alpha": (LORA, 8.0),
    "lora.targets": (LORA, "query"),
    "lora.rank_rules": (LORA, ((".*query.*", 1),)),
    "lora.alpha_rules": (LORA, ((".*query.*", 1.0),)),
    "lora.dropout": (LORA, 0.1),
    "lora.rank_stable": (LORA, True),
    "lora.decompose": (LORA, True),
    "lora.start": (LORA, "pissa"),
    "lora.learning_rate_ratio": (LORA, 16.0),
    "quantize.format": (LORA, "int8"),
    "quantize.targets": (CODES, "query"),
    "quantize.embeddings": (CODES, "int8"),
    "quantize.group": (CODES, 4),
    "execution.remat": ({}, "full"),
    "execution.head_tokens": ({}, 4),
    "execution.unroll": ({}, 2),
    "execution.attention": ({}, "flash"),
    "execution.experts": (EXPERTS, "mosaic"),
    "execution.feed_tokens": ({}, 8),
    "execution.micro_batches": ({}, 2),  # refused: the mesh has no stages
    "execution.documents": ({}, 1),  # refused: the batch has rows of two
    "precision.param": ({}, "bfloat16"),
    "precision.compute": ({}, "bfloat16"),
    "precision.accumulate": ({"train.accumulate": 2}, "bfloat16"),
    "objective.masked_lm.share": (MASKED, 0.4),
    "objective.masked_lm.whole_words": (MASKED, True),
    "objective.span_corruption.share": (SPANS, 0.4),
    "objective.span_corruption.mean_span": (SPANS, 2.0),
    "optimizer.name": ({}, "lion"),
    "optimizer.learning_rate": ({}, 1.0),
    "optimizer.schedule": ({}, "linear"),
    "optimizer.warmup_steps": ({}, 3),
    "optimizer.decay_steps": ({}, 7),
    "optimizer.decay_fraction": ({"optimizer.schedule": "wsd"}, 0.4),
    "optimizer.min_ratio": ({}, 0.3),
    "optimizer.b1": ({}, 0.5),
    "optimizer.b2": ({}, 0.5),
    "optimizer.eps": ({}, 1e-3),
    "optimizer.momentum": (MUON, 0.5),
    "optimizer.parameter_scale": (ADAFACTOR, True),
    "optimizer.weight_decay": ({}, 0.5),
    "optimizer.decay_embeddings": ({}, False),
    "optimizer.weight_decay_rules": ({}, ((".*", 0.5),)),
    "optimizer.learning_rate_rules": ({}, ((".*", 0.5),)),
    "optimizer.clip_norm": ({}, 2.0),
    "optimizer.keep_zeros": ({}, True),
    "data.source": ({}, "OTHER"),
    "data.tokenizer": ({}, "bpe:300"),
    "data.chat_template": (CHAT, "TEMPLATE"),
    "data.template_variables": (CHAT, ("loud=true",)),
    "data.sequence_length": ({}, 8),
    "data.batch_size": ({}, 4),
    "data.batch_size_per_device": ({"data.batch_size": 0, "data.batch_size_per_device": 2}, 4),
    "data.max_bad_records": ({}, 3),
    "data.label_names": (CLASSES, "bad,good,neither"),
    "data.packing": ({}, False),
    "data.prompt_tokens": (PREFER, 8),
    "data.threads": ({}, 1),
    "train.steps": ({}, 30),
    "train.epochs": ({}, 2.0),
    "train.seed": ({}, 1),
    "train.accumulate": ({}, 2),
    "train.log_every": ({}, 3),
    "train.eval_every": ({}, 5),
    "train.eval_batches": ({"train.eval_every": 5}, 2),
    "train.sample_every": ({}, 5),
    "train.sample_prompt": ({}, "def "),
    "train.sample_tokens": ({}, 7),
    "checkpoint.every": ({}, 5),
    "checkpoint.keep": ({}, 3),
    "checkpoint.keep_period": ({}, 10),
    "logging.wandb": ({}, True),
    "skip.nonfinite": ({}, True),
    "skip.sigmas": ({}, 6.0),
    "skip.window": (SPIKES, 64),
    "skip.limit": (SPIKES, 7),
    "skip.then": (SPIKES, "rewind"),
    **{f"watchdog.{part}": ({}, 60.0) for part in ("start", "restore", "compile", "step")},
    **{f"watchdog.{part}": ({}, 60.0) for part in ("evaluate", "save")},
    "init": ({}, "OTHER"),
    "mesh": (TWO, "tensor:2"),
    "axes": (TWO, {"embed": ()}),
    "evals": ({}, {"perplexity": {"text": "OTHER"}}),
}
_RUNS = {
    **{"causal_lm": {}, "chat": CHAT, "masked_lm": MASKED, "classification": CLASSES},
    **{"token_classification": TAGS, "media_chat": MEDIA},
    **{"span_corruption": SPANS, "translation": PAIRS},
}
_DECODERS = ("causal_lm", "chat", "media_chat")
for _name in _RUNS:
    CASES[f"objective.{_name}.label_smoothing"] = (_RUNS[_name], 0.1)
    if not _name.endswith("classification"):
        CASES[f"objective.{_name}.z_loss"] = (_RUNS[_name], 0.1)
    CASES[f"objective.{_name}.name"] = (_RUNS[_name], "chat" if _name != "chat" else "causal_lm")
CASES |= {
    "objective.chat.loss_on": (CHAT, "all"),
    "objective.media_chat.loss_on": (MEDIA, "all"),
    "objective.contrastive.name": (CONTRAST, "causal_lm"),
    "objective.contrastive.scale": (CONTRAST, 20.0),
    "objective.contrastive.offset": (CONTRAST, 1.0),
    "objective.distillation.name": (DISTIL, "causal_lm"),
    "objective.distillation.teacher": (DISTIL, "nowhere"),  # refused: no checkpoint
    "objective.distillation.divergence": (DISTIL, 0.5),
    "objective.distillation.temperature": (DISTIL, 2.0),
    "objective.distillation.teacher_weight": (DISTIL, 0.25),
    "objective.distillation.rounding": (DISTIL, "int8"),
    "objective.distillation.rounding_group": (DISTIL | {"objective.rounding": "int8"}, 4),
    "objective.preference.name": (PREFER, "causal_lm"),
    "objective.token_classification.overlap": (TAGS, 3),
    "objective.question_answering.name": (ANSWERS, "causal_lm"),
    "objective.question_answering.overlap": (ANSWERS, 3),
    "objective.preference.preference_loss": (PREFER, "hinge"),
    "objective.preference.beta": (PREFER, 0.2),
    "objective.preference.label_smoothing": (PREFER, 0.1),
    "objective.preference.gamma": (SIMPO, 1.0),
    "objective.preference.reference": (PREFER, "cached"),
    "objective.judgement.name": (JUDGE, "causal_lm"),
    "objective.judgement.unpaired_loss": (JUDGE, "apo_zero_unpaired"),
    "objective.judgement.beta": (JUDGE, 0.2),
    "objective.judgement.liked": (JUDGE, 2.0),
    "objective.judgement.disliked": (JUDGE, 2.0),
    "objective.judgement.reference": (JUDGE, "cached"),
    "objective.reward.name": (REWARD, "causal_lm"),  # refused: the model has a label
    "objective.reward.reward_margin": (REWARD, 0.5),
    "objective.reward.centring": (REWARD, 0.1),
}

CASES |= {
    f"objective.policy.{_name}": (POLICY, _other)
    for _name, _other in {
        **{"name": "causal_lm", "policy_loss": "grpo", "advantage": "centred", "average": "text"},
        **{"clip_low": 0.1, "clip_high": 0.1, "clip_most": 4.0, "kl_weight": 0.1, "samples": 4},
        **{"max_tokens": 5, "rewards": "length", "updates": 2, "staleness": 1},
        **{"temperature": 0.5, "logprob_limit": 1e-6, "engine": "pages"},
    }.items()
}
CASES |= {
    f"objective.policy.{_name}": (POLICY | {"objective.policy_loss": "ppo"}, _other)
    for _name, _other in {"discount": 0.9, "gae_decay": 0.8, "value_weight": 0.2}.items()
}
CASES |= {
    f"objective.on_policy_distillation.{_name}": (WRITES, _other)
    for _name, _other in {
        **{"samples": 4, "max_tokens": 5, "rewards": "length", "updates": 2, "staleness": 1},
        **{"temperature": 0.5, "logprob_limit": 1e-6, "engine": "pages", "divergence": 0.5},
        **{"teacher": "nowhere"},  # refused: no checkpoint
    }.items()
}
CASES["objective.on_policy_distillation.name"] = (
    {"objective.name": "on_policy_distillation"},
    "causal_lm",
)
CASES["objective.policy.name"] = ({"objective.name": "policy"}, "causal_lm")
CASES["objective.policy.max_tokens"] = (POLICY | {"objective.average": "constant"}, 5)

# Fields whose other value does not fit the rest of the run, and what the line says.
REFUSED = {
    "model.kind": "for a model of kind 'encoder'",
    "model.pooler": "set model.pooler=True",
    "model.mels": "this one is 'encoder_decoder of sound'",
    "model.frames": "set model.mels",
    "model.labels_over": "model.labels_over='tokens' under objective classification",
    "execution.attention": "set config.execution.attention",  # a GPU's, on a CPU
    "execution.experts": "set config.execution.experts",  # a GPU's, on a CPU
    "data.template_variables": "has no variable 'loud'",
    "objective.reward.name": "model.labels=1 under objective causal_lm",
    "objective.distillation.teacher": "nowhere is no checkpoint",
    "objective.on_policy_distillation.teacher": "nowhere is no checkpoint",
    "objective.question_answering.name": "objective causal_lm does not use it",
    "execution.micro_batches": "is for meshes with stages",
    "execution.documents": "a row holds 2 documents and config.execution.documents=1",
    **{f"objective.{name}.name": "for a model of kind" for name in _RUNS if name not in _DECODERS},
}

# (what a run has, a setting that it has no use for): refused.
UNUSED: list[tuple[dict[str, Any], str, Any]] = [
    ({}, "skip.window", 64),
    ({"skip.nonfinite": True}, "skip.window", 64),
    ({}, "skip.limit", 7),
    ({}, "skip.then", "rewind"),
    ({}, "model.experts_per_token", 1),
    ({}, "model.router_loss", 0.1),
    (LEARNED, "model.rope_theta", 500.0),
    (LEARNED, "model.rope_scaling.factor", 2.0),
    (GLOBAL | LEARNED, "model.local_rope_theta", 500.0),
    ({}, "model.image.token", 3),
    (IMAGE, "model.image.merge", 2),
    ({}, "model.sound.token", 3),
    ({}, "model.rope_scaling.kind", "linear"),
    ({}, "model.rope_scaling.low_factor", 0.5),
    ({}, "model.rope_scaling.high_factor", 8.0),
    ({}, "model.rope_scaling.original_length", 32),
    (LINEAR, "model.rope_scaling.low_factor", 0.5),
    (SCALED, "model.rope_scaling.beta_fast", 16.0),
    (DYNAMIC, "model.rope_scaling.attention_factor", 2.0),
    (LEARNED, "model.rotary_size", 2),
    ({}, "model.query_growth", 0.5),
    ({}, "model.query_norm_over", "heads"),
    ({}, "model.global_every", 2),
    (WINDOW, "model.local_rope_theta", 500.0),
    (LAYER_NORM, "model.norm_offset", 1.0),
    ({}, "model.norm_bias", False),
    ({"model.norm_after": True}, "model.first_norm", False),
    ({**MASKED, "model.token_types": 2}, "model.embedding_norm", True),
    ({}, "model.position_offset", 2),
    (LEARNED, "model.encoder_positions", True),
    ({}, "model.decoder_start", "end"),
    ({}, "model.pooling", "mean"),
    ({}, "model.pooler_layer", "relu"),
    ({}, "model.transform_bias", False),
    ({}, "model.token_types", 2),
    ({}, "model.pooler", True),
    ({}, "model.mlm_head", True),
    ({}, "model.labels", 2),
    ({}, "model.labels_over", "tokens"),
    (TAGS, "model.pooler", True),
    (ANSWERS, "data.label_names", "a,b"),
    ({}, "model.encoder_layers", 2),
    ({**MASKED, "model.mlm_head": True}, "model.head_bias", True),
    ({}, "tune.also", "norm"),
    ({}, "tune.bottleneck", 3),
    ({}, "tune.placement", "pfeiffer"),
    (LORA, "tune.virtual_tokens", 3),
    ({}, "lora.rank", 2),
    ({}, "quantize.format", "int8"),
    (LORA, "quantize.group", 4),
    (LORA, "quantize.targets", "query"),
    (EXPERTS, "execution.feed_tokens", 8),
    ({}, "objective.share", 0.4),
    ({}, "objective.whole_words", True),
    (MASKED, "objective.mean_span", 2.0),
    (CLASSES, "objective.z_loss", 0.1),
    (PREFER, "objective.z_loss", 0.1),
    (PREFER, "objective.gamma", 1.0),
    (DISTIL, "objective.rounding_group", 4),
    (DISTIL | {"objective.teacher_weight": 0.0}, "objective.temperature", 2.0),
    (REWARD, "objective.beta", 1.0),
    (POLICY, "objective.discount", 0.9),
    (POLICY, "objective.gae_decay", 0.8),
    (POLICY, "objective.value_weight", 0.2),
    (SIMPO, "objective.reference", "cached"),
    (CHAT, "data.prompt_tokens", 8),
    (CHAT, "data.packing", False),
    (REWARD, "execution.head_tokens", 64),
    (PREFER | {"objective.preference_loss": "ipo"}, "objective.label_smoothing", 0.1),
    ({}, "optimizer.momentum", 0.5),
    (ADAFACTOR, "optimizer.b2", 0.5),
    ({"optimizer.name": "lion"}, "optimizer.eps", 1e-3),
    ({}, "optimizer.parameter_scale", True),
    ({"optimizer.schedule": "constant"}, "optimizer.decay_steps", 5),
    ({"optimizer.schedule": "constant"}, "optimizer.decay_fraction", 0.5),
    ({"optimizer.schedule": "constant"}, "optimizer.min_ratio", 0.5),
    ({}, "data.chat_template", "TEMPLATE"),
    ({}, "data.template_variables", ("loud=true",)),
    ({}, "data.batch_size_per_device", 2),
]


def every_field() -> Iterator[tuple[str, Any]]:
    """(name, type) of each field there is; those of an objective with its name."""
    for name, kind in get_type_hints(Experiment).items():
        if name == "objective":
            for objective, row in OBJECTIVES.items():
                yield from _fields(row.config, f"objective.{objective}")
        elif dataclasses.is_dataclass(kind):
            yield from _fields(kind, name)
        else:
            yield name, kind


def _fields(kind: type, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, hint in get_type_hints(kind).items():
        if name == "name" and prefix.startswith("objective."):
            yield f"{prefix}.{name}", str
        elif dataclasses.is_dataclass(hint):
            yield from _fields(hint, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", hint


def numbers() -> Iterator[tuple[str, float]]:
    """(name, value out of range) for each field that is a number, or is one or None."""
    for name, hint in every_field():
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        if int in kinds:
            yield name, -1
        if float in kinds:
            yield from ((name, -1.0), (name, float("nan")), (name, float("inf")))


def tiny(changes: dict[str, Any]) -> Experiment:
    """The experiment of `TINY` with changes by name, such as {"lora.rank": 2}."""
    values: dict[str, Any] = {}
    for name, value in (TINY | changes).items():
        *sections, last = name.split(".")
        if len(sections) == 2 and sections[0] == "objective":
            sections = ["objective"]
        target = values
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value
    return make_experiment(values)


def key(changes: dict[str, Any]) -> str:
    """Changes as text, to remember what was found for them."""
    return json.dumps(changes, sort_keys=True)
