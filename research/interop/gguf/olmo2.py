"""The architecture olmo2, of OLMo 2 and 3: norms behind the branches alone, and in OLMo 3 a window
in most layers, whose rotary positions are not scaled."""

from typing import Any

from research.interop.gguf import rope_keys
from research.interop.gguf.architecture import (
    Architecture,
    Metadata,
    check_square,
    check_untied,
    read_shape,
    write_shape,
)
from research.interop.gguf.decoder_rules import rotated_rules
from research.interop.gguf.llama import is_rotary
from research.models.config import ModelConfig
from research.models.kinds import spell
from research.ops.rope_scaling import RopeScaling

_PATTERN = "attention.sliding_window_pattern"


def read_config(m: Metadata) -> ModelConfig:
    """The model that a file's metadata describes."""
    shape, window = read_shape(m), m.number("attention.sliding_window", 0)
    layers: dict[str, Any] = {}
    if window:
        layers = {"window": window, **_read_pattern(m, shape["layers"])}
        # Layers with a window have the same base, and no scaling.
        if rope_keys.read_keys(m) != RopeScaling() and layers["global_every"]:
            layers["local_rope_theta"] = shape["rope_theta"]
    return ModelConfig(
        **shape,
        **layers,
        branch_norm=True,
        norm_before=False,
        query_norm=True,
        query_norm_over="heads",
    )


def _read_pattern(m: Metadata, count: int) -> dict[str, Any]:
    """The fields for the layers that see all: a period, or as published files have it a list with
    true for each layer with a window."""
    pattern = m.values.get(f"{m.kind}.{_PATTERN}", 4)
    if isinstance(pattern, (bool, int, float, str)):
        period = m.number(_PATTERN, 4)
        kinds = ["local" if period == 0 or n % period else "global" for n in range(1, count + 1)]
        return spell(kinds)
    if len(pattern) != count:
        raise ValueError(
            f"the metadata has {len(pattern)} values of {m.kind}.{_PATTERN}; wanted {count}"
        )
    return spell(["local" if slides else "global" for slides in pattern])


def name_of(c: ModelConfig) -> str | None:
    """ "olmo2" for a decoder whose branches have a norm behind them alone."""
    return "olmo2" if is_rotary(c) and c.branch_norm and not c.norm_before else None


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The metadata of a model. ValueError for tied tables and heads of another width."""
    kind = "olmo2"
    check_square(c, kind)
    check_untied(c, kind)
    values = write_shape(c, kind)
    if c.window:
        values[f"{kind}.attention.sliding_window"] = c.window
        values[f"{kind}.{_PATTERN}"] = c.global_every
    return values


ARCHITECTURE = Architecture(
    names=("olmo2",),
    name_of=name_of,
    read_config=read_config,
    write_config=write_config,
    rules=lambda c, name: rotated_rules(c, "p h"),
)
