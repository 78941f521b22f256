"""What a `ModelConfig` refuses: choices that do not exist, numbers out of range, fields that
contradict each other, and fields that are set and change nothing in such a model."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from types import SimpleNamespace
from typing import Any

CHOICES = {
    "kind": ("decoder", "encoder", "encoder_decoder"),
    "position": ("rope", "learned", "sinusoidal", "relative"),
    "norm": ("rms", "layer"),
    "activation": ("gelu", "gelu_tanh", "silu", "relu"),
    "attention_bias": ("none", "qkv", "all"),
    "init": ("scaled", "plain", "xavier", "t5"),
}
_SIZES = ("vocab_size", "layers", "d_model", "heads", "kv_heads", "head_size", "d_ff", "max_length")
_POSITIVE = (*_SIZES, "norm_eps", "rope_theta", "embedding_scale", "head_scale")
_NOT_NEGATIVE = (
    *("encoder_layers", "window", "global_every", "local_rope_theta", "attention_scale"),
    *("attention_softcap", "logit_softcap", "norm_offset", "experts", "token_types", "labels"),
    *("router_loss", "init_std"),
)

# (fields, whether a model uses them, what to set): each other model keeps their defaults.
_USED: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (("experts_per_token", "router_loss"), lambda c: c.experts > 0, "model.experts"),
    (
        ("rope_theta", "rope_scaling", "local_rope_theta"),
        lambda c: c.position == "rope",
        "model.position='rope'",
    ),
    (
        ("token_types", "pooler", "mlm_head"),
        lambda c: c.kind == "encoder",
        "model.kind='encoder'",
    ),
    (("head_bias",), lambda c: not c.mlm_head, "model.mlm_head=False, which has that bias too"),
    (("labels",), lambda c: c.pooler, "model.pooler=True"),
    (("global_every",), lambda c: c.window > 0, "model.window"),
    (("local_rope_theta",), lambda c: c.global_every > 0, "model.global_every"),
    (("norm_offset",), lambda c: c.norm == "rms", "model.norm='rms'"),
)


def reset_unused(
    values: Mapping[str, Any], defaults: Mapping[str, Any], given: Collection[str] = ()
) -> dict[str, Any]:
    """`values` with every field that changes nothing in this model reset to its default, except
    those in `given`, which the user has set and `check` is to refuse. The section `rope_scaling` is
    a dictionary here, and a field of it is given as "rope_scaling.NAME".

    For example, a LLaMA preset with learned positions has a `rope_theta` that is not used.
    """
    kept, before = dict(values), None
    while kept != before:  # resetting one field can make another useless
        before = dict(kept)
        for names, used, _ in _USED:
            if not used(SimpleNamespace(**before)):
                kept |= {
                    name: defaults[name] for name in names if name in kept and name not in given
                }
    if "rope_scaling" in kept:
        kept["rope_scaling"] = {
            name: defaults["rope_scaling"][name]
            if name in _unused_scaling(kept["rope_scaling"]) and f"rope_scaling.{name}" not in given
            else value
            for name, value in kept["rope_scaling"].items()
        }
    return kept


def _unused_scaling(scaling: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of a `research.ops.rope.RopeScaling` that change nothing beside the others."""
    lengths = ("low_factor", "high_factor", "original_length")
    if scaling["factor"] == 1:
        return ("kind", *lengths)
    return lengths if scaling["kind"] == "linear" else ()


def check(c: Any) -> None:
    """ValueError for a `research.models.config.ModelConfig` that describes no model, with the field
    to change."""
    for name, choices in CHOICES.items():
        if getattr(c, name) not in choices:
            raise ValueError(
                f"model.{name}={getattr(c, name)!r}; choose one of {', '.join(choices)}"
            )
    _check_ranges(c)
    _check_combinations(c)
    defaults = {field.name: field.default for field in dataclasses.fields(c)}
    for names, used, wanted in _USED:
        for name in names:
            if getattr(c, name) != defaults[name] and not used(c):
                raise ValueError(
                    f"model.{name}={getattr(c, name)} changes nothing in this model; "
                    f"set {wanted}, or leave it at {defaults[name]}"
                )
    scaling, plain = dataclasses.asdict(c.rope_scaling), dataclasses.asdict(type(c.rope_scaling)())
    for name in _unused_scaling(scaling):
        if scaling[name] != plain[name]:
            raise ValueError(
                f"model.rope_scaling.{name}={scaling[name]} changes nothing beside factor="
                f"{scaling['factor']} and kind={scaling['kind']!r}; set "
                f"model.rope_scaling.factor and kind, or leave it at {plain[name]}"
            )


def _check_ranges(c: Any) -> None:
    for names, good, wanted in (
        (_POSITIVE, lambda value: 0 < value < math.inf, "positive"),
        (_NOT_NEGATIVE, lambda value: 0 <= value < math.inf, "at least 0"),
        (("dropout",), lambda value: 0 <= value < 1, "in [0, 1)"),
    ):
        for name in names:
            if not good(getattr(c, name)):  # so is NaN, which compares with nothing
                raise ValueError(f"model.{name}={getattr(c, name)} must be {wanted}")
    if c.experts and not 1 <= c.experts_per_token <= c.experts:
        raise ValueError(
            f"model.experts_per_token={c.experts_per_token} must be in 1..{c.experts}, "
            "the number of model.experts"
        )


def _check_combinations(c: Any) -> None:
    if c.heads % c.kv_heads:
        raise ValueError(f"model.heads={c.heads} must be a multiple of model.kv_heads={c.kv_heads}")
    if (c.kind == "encoder_decoder") != (c.encoder_layers > 0):
        raise ValueError(
            f"model.encoder_layers={c.encoder_layers} does not fit model.kind={c.kind!r}; "
            "encoder-decoders have one or more, other models 0; set one of the two"
        )
    if c.experts and (not c.gated or c.mlp_bias):
        raise ValueError("model.experts are gated without bias; set model.gated, not mlp_bias")
    if c.position == "rope" and c.head_size % 2:
        raise ValueError(f"model.head_size={c.head_size} must be even for rotary positions")
    if c.position == "sinusoidal" and c.d_model % 2:
        raise ValueError(f"model.d_model={c.d_model} must be even for sinusoidal positions")
    if c.global_every == 1:
        raise ValueError(
            f"model.global_every=1 leaves no layer model.window={c.window}; set model.window=0"
        )
    if c.branch_norm and c.norm_after:
        raise ValueError(
            "model.branch_norm and model.norm_after normalise a branch twice; set one of them"
        )
