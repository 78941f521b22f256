"""Rotary positions in config.json: base, scaling to longer texts, the rotated part of a head."""

import math
from collections.abc import Mapping
from typing import Any

from research.interop.huggingface.families.fields import flag, integer, number, refuse
from research.models.config import ModelConfig
from research.ops.rope_scaling import RopeScaling


def read_rope(
    values: Mapping[str, Any], default: float = 10000.0, *, partial: bool = False
) -> tuple[float, RopeScaling]:
    """(base, scaling) of the rotary positions, from `rope_parameters` (transformers 5) or from
    `rope_theta` and `rope_scaling` (transformers 4); `default` is the base of the model's class.
    ValueError for a scaling that we do not have, and for heads that are rotated in part unless
    `partial` says that the class can.

    Where a file has both, transformers 5 takes all of `rope_scaling` and nothing of the other.
    """
    scaling = parameters(values)
    if not partial:
        refuse(scaling, partial_rotary_factor=1.0)
    theta = number(scaling if "rope_theta" in scaling else values, "rope_theta", default)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return theta, RopeScaling()
    if kind not in _READERS:
        raise ValueError(
            f"config.json has rope_type={kind!r}; default, {', '.join(_READERS)} are supported"
        )
    # transformers 5 takes the field beside all others first.
    lengths = {"original_max_position_embeddings": values.get("max_position_embeddings")}
    for given in (scaling, values):
        original = given.get("original_max_position_embeddings")
        lengths |= {} if original is None else {"original_max_position_embeddings": original}
    return theta, _READERS[kind](values, {**scaling, **lengths})


def parameters(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The dictionary of rotary parameters under either name, {} without one. ValueError where types
    of layers differ in them."""
    scaling = values.get("rope_scaling") or values.get("rope_parameters") or {}
    # transformers 5 nests one set of parameters under each type of layer where a model has several.
    if scaling and all(isinstance(value, Mapping) for value in scaling.values()):
        first, *others = scaling.values()
        if any(other != first for other in others):
            raise ValueError(
                "config.json has rope_parameters that differ by layer type; one for all layers is "
                "supported"
            )
        scaling = first
    return scaling


def read_rotary_size(values: Mapping[str, Any], head_size: int, default: float = 1.0) -> int:
    """`rotary_size` of a model whose class reads `partial_rotary_factor`; `default` is the class's
    factor."""
    scaling = parameters(values)
    inside = scaling.get("partial_rotary_factor") is not None
    share = number(scaling if inside else values, "partial_rotary_factor", default)
    # int and not round, as in transformers.
    size = int(head_size * share)
    return 0 if size == head_size else size


def rotary_share(c: ModelConfig) -> float:
    """The `partial_rotary_factor` that `read_rotary_size` reads as `c.rotary_size`."""
    share = (c.rotary_size or c.head_size) / c.head_size
    # 29 / 100 * 100 is 28.999...: the next number up is then the share.
    return share if int(c.head_size * share) >= c.rotary_size else math.nextafter(share, 1.0)


def _read_linear(values: Mapping[str, Any], scaling: Mapping[str, Any]) -> RopeScaling:
    return _scaling(factor=number(scaling, "factor"), kind="linear")


def _read_dynamic(values: Mapping[str, Any], scaling: Mapping[str, Any]) -> RopeScaling:
    # The class's own length is the original one here, whatever other fields say.
    length = integer(values, "max_position_embeddings")
    return _scaling(factor=number(scaling, "factor"), original_length=length, kind="dynamic")


def _read_llama3(values: Mapping[str, Any], scaling: Mapping[str, Any]) -> RopeScaling:
    return _scaling(
        factor=number(scaling, "factor"),
        low_factor=number(scaling, "low_freq_factor"),
        high_factor=number(scaling, "high_freq_factor"),
        original_length=integer(scaling, "original_max_position_embeddings"),
    )


def _read_yarn(values: Mapping[str, Any], scaling: Mapping[str, Any]) -> RopeScaling:
    length = integer(scaling, "original_max_position_embeddings")
    factor = number(scaling, "factor", _stretch(values, length))
    scales = [number(scaling, name, 0.0) for name in ("mscale", "mscale_all_dim")]
    attention = number(scaling, "attention_factor", 0.0)
    if not attention and all(scales) and factor > 1:
        # DeepSeek's form: the two scales in place of the paper's 0.1 ln(factor) + 1.
        above, below = (0.1 * scale * math.log(factor) + 1.0 for scale in scales)
        attention = above / below
    return _scaling(
        factor=factor,
        original_length=length,
        beta_fast=number(scaling, "beta_fast", 32.0) or 32.0,
        beta_slow=number(scaling, "beta_slow", 1.0) or 1.0,
        truncate=flag(scaling, "truncate", True),
        attention_factor=attention,
        kind="yarn",
    )


def _read_longrope(values: Mapping[str, Any], scaling: Mapping[str, Any]) -> RopeScaling:
    length = integer(scaling, "original_max_position_embeddings")
    attention = number(scaling, "attention_factor", 0.0)
    factor = number(scaling, "factor", _stretch(values, length))
    return RopeScaling(
        # Only the attention's factor is derived of it.
        factor=1.0 if attention else factor,
        original_length=length,
        attention_factor=attention,
        short_factors=_numbers(scaling, "short_factor"),
        long_factors=_numbers(scaling, "long_factor"),
        kind="longrope",
    )


_READERS = {
    "linear": _read_linear,
    "llama3": _read_llama3,
    "dynamic": _read_dynamic,
    "yarn": _read_yarn,
    "longrope": _read_longrope,
}


def _scaling(**fields: Any) -> RopeScaling:
    # Every other kind of scaling by 1 is the identity, and `RopeScaling()` is how "none" compares
    # equal.
    return RopeScaling() if fields["factor"] == 1 else RopeScaling(**fields)


def _stretch(values: Mapping[str, Any], length: int) -> float:
    """The longest text over the original length, which stands in for an absent factor."""
    return integer(values, "max_position_embeddings") / length


def _numbers(scaling: Mapping[str, Any], name: str) -> tuple[float, ...]:
    listed = scaling.get(name)
    if not isinstance(listed, list):
        raise ValueError(f"config.json has {name}={listed!r}; wanted a list of numbers")
    return tuple(number({name: value}, name) for value in listed)


def write_scaling(c: ModelConfig) -> dict[str, Any] | None:
    """The value of `rope_scaling` in config.json, None for unscaled positions. `read_rope` is the
    inverse."""
    scaling = c.rope_scaling
    if scaling == RopeScaling():
        return None
    values: dict[str, Any] = {"rope_type": scaling.kind}
    if scaling.kind != "longrope" or (
        not scaling.attention_factor and scaling.factor != c.max_length / scaling.original_length
    ):
        values |= {"factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn", "longrope"):
        values |= {"original_max_position_embeddings": scaling.original_length}
    if scaling.kind == "llama3":
        values |= {"low_freq_factor": scaling.low_factor, "high_freq_factor": scaling.high_factor}
    if scaling.kind == "yarn":
        values |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        # Absent is true, and few releases know the field.
        values |= {} if scaling.truncate else {"truncate": False}
    if scaling.kind == "longrope":
        values |= {"short_factor": list(scaling.short_factors)}
        values |= {"long_factor": list(scaling.long_factors)}
    if scaling.attention_factor:
        values |= {"attention_factor": scaling.attention_factor}
    return values
