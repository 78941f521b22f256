"""What the fields of `research.models.config_parts` must agree on with others."""

from dataclasses import fields
from typing import Any


def check_routing(c: Any) -> None:
    """ValueError for experts that no router can choose."""
    # `research.ops.route.experts` computes the one form that published mixtures have.
    if not c.gated:
        raise ValueError("model.experts are gated; set model.gated=True")
    if c.experts % c.route_groups:
        raise ValueError(
            f"model.experts={c.experts} must be a multiple of model.route_groups={c.route_groups}"
        )
    size = c.experts // c.route_groups
    if c.groups_per_token > c.route_groups:
        raise ValueError(
            f"model.groups_per_token={c.groups_per_token} must be in 1..{c.route_groups}, "
            "the number of model.route_groups"
        )
    if not 1 <= c.experts_per_token <= c.groups_per_token * size:
        of = f", of which a token visits {c.groups_per_token} groups" if c.route_groups > 1 else ""
        raise ValueError(
            f"model.experts_per_token={c.experts_per_token} must be in "
            f"1..{c.groups_per_token * size}, the number of model.experts{of}"
        )
    # A group counts as much as its two best experts.
    if c.router == "sigmoid" and c.route_groups > 1 and size < 2:
        raise ValueError(
            f"model.route_groups={c.route_groups} leaves one expert a group, and model.router="
            "'sigmoid' wants two or more; set fewer groups"
        )
    # Each of its weights is a share of another sum.
    if c.router == "sparsemixer" and (c.route_groups > 1 or not c.normalized_routes):
        raise ValueError(
            "model.router='sparsemixer' chooses among all experts and has weights of its own; set "
            "model.route_groups=1 and model.normalized_routes=True"
        )
    _check_dense_layers(c)


def _check_dense_layers(c: Any) -> None:
    if (c.dense_layers > 0) != (c.dense_d_ff > 0):
        raise ValueError(
            f"model.dense_layers={c.dense_layers} does not fit model.dense_d_ff={c.dense_d_ff}; "
            "set both or neither"
        )
    if c.dense_layers >= c.layers:
        raise ValueError(
            f"model.dense_layers={c.dense_layers} leaves none of model.layers={c.layers} experts; "
            "set model.experts=0"
        )
    if c.dense_layers and (c.kind == "encoder_decoder" or c.layer_kinds):
        raise ValueError(
            "model.dense_layers are of a model with one stack, without model.layer_kinds; "
            "set them to 0"
        )


def check_latent(c: Any) -> None:
    """ValueError for latent attention with what has no meaning there."""
    if c.kind != "decoder" or c.position != "rope" or not c.rotary_size:
        raise ValueError(
            f"model.kv_latent={c.kv_latent} is for decoders whose heads are rotated in part; set "
            "model.kind='decoder', model.position='rope' and model.rotary_size"
        )
    if c.kv_heads != c.heads:
        raise ValueError(
            f"model.kv_heads={c.kv_heads} must be model.heads={c.heads}: each head makes keys and "
            "values of the latent"
        )
    if c.attention_sinks:
        raise ValueError("model.kv_latent has no heads with sinks; set model.attention_sinks=False")
    if c.query_norm or c.attention_bias in ("qkv", "no_key"):
        raise ValueError(
            "model.kv_latent has norms of its own, and biases of the latents and the output; set "
            "model.query_norm=False and model.attention_bias='none' or 'all'"
        )


def check_sound(c: Any) -> None:
    """ValueError for an encoder of sound with what only one of texts has."""
    # The second convolution makes one state of two frames.
    if c.frames % 2:
        raise ValueError(f"model.frames={c.frames} must be even")
    if c.d_model < 4 or c.d_model % 2:
        raise ValueError(
            f"model.d_model={c.d_model} must be even, and 4 or more, for the sinusoids of sound"
        )
    if c.position not in ("learned", "sinusoidal") or c.encoder_positions or c.embedding_norm:
        raise ValueError(
            "model.mels has sinusoids in its encoder; set model.position='learned' or "
            "'sinusoidal', model.encoder_positions=False and model.embedding_norm=False"
        )


def check_encoder(section: str, media: str, c: Any) -> None:
    """ValueError for fields of the section `model.image` or `model.sound` that are out of range, or
    set in a model without an encoder of such media."""
    for one in fields(c):
        name, value, choices = one.name, getattr(c, one.name), one.metadata.get("choices")
        if choices and value not in choices:
            raise ValueError(
                f"model.{section}.{name}={value!r}; choose one of {', '.join(choices)}"
            )
        if isinstance(value, int) and value < one.metadata.get("positive", False):
            wanted = "positive" if one.metadata.get("positive") else "at least 0"
            raise ValueError(f"model.{section}.{name}={value} must be {wanted}")
        if not c.layers and value != one.default:
            raise ValueError(
                f"model.{section}.{name}={value} changes nothing in a model without an encoder of "
                f"{media}; set model.{section}.layers, or leave it at {one.default}"
            )


def check_places(c: Any) -> None:
    """ValueError for one id as the place of soft tokens of two kinds."""
    if c.image.in_texts and c.sound.layers and c.image.token == c.sound.token:
        raise ValueError(
            f"model.image.token and model.sound.token are both {c.image.token}; set another for one"
        )
