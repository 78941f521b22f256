"""Kinds of layers: what a query sees and how it rotates may differ from layer to layer. Gemma 2 has
local layers, which see a window, and global ones; SmolLM3 has layers without rotary positions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from research.ops.rope import Rates


@dataclass(frozen=True)
class KindRule:
    """A row of `KINDS`: which layers of a model are of a kind, and how they attend. Each function
    is asked with the model's config.

    every   every(c) is n where layers n - 1, 2n - 1, ... are of the kind, 0 where none is
    window  window(c) is how many tokens a query sees at most, itself among them; 0 for all
    rates   rates(c) are the frequencies of the rotation, None for layers without one
    """

    every: Callable[[Any], int]
    window: Callable[[Any], int]
    rates: Callable[[Any], Rates | None]


def _rates(c: Any) -> Rates | None:
    if c.position != "rope":
        return None
    return Rates(c.rotary_size or c.head_size, c.rope_theta, c.rope_scaling)


def _local_rates(c: Any) -> Rates | None:
    # Text that local layers see is never longer than their window: no scaling for them.
    if not c.local_rope_theta:
        return _rates(c)
    return Rates(c.rotary_size or c.head_size, c.local_rope_theta)


# By name; all have the same parameters. The last row that claims a layer has it. The last kind is
# in no period: only `layer_kinds` names its layers.
KINDS: dict[str, KindRule] = {
    "local": KindRule(lambda c: 1, lambda c: c.window, _local_rates),
    "global": KindRule(lambda c: c.global_every, lambda c: 0, _rates),
    "unrotated": KindRule(lambda c: c.unrotated_every, lambda c: 0, lambda c: None),
    "local_unrotated": KindRule(lambda c: 0, lambda c: c.window, lambda c: None),
}


def layer_pattern(c: Any) -> tuple[str, ...]:
    """One period of the kinds of layers, repeated from the first layer to the last: ("local",)
    where all layers are alike, ("local", "global") for Gemma 2."""
    if c.layer_kinds:
        kinds = tuple(c.layer_kinds)
        # The shorter the period, the more of the layers are one loop of the program.
        periods = range(1, len(kinds) + 1)
        repeats = (n for n in periods if all(a == b for a, b in zip(kinds, kinds[n:])))
        return kinds[: next(repeats)]
    # Kinds that this model does not have (0) would make the common multiple 0.
    every = {name: rule.every(c) for name, rule in KINDS.items() if rule.every(c)}
    # Layers n - 1, 2n - 1, ... of each kind repeat together after the least common multiple. Of
    # several kinds that claim a layer the last row wins, as the table says.
    return tuple(
        [name for name, n in every.items() if number % n == 0][-1]
        for number in range(1, math.lcm(*every.values()) + 1)
    )


def spell(kinds: Sequence[str]) -> dict[str, Any]:
    """The fields of `Body` that give a model's layers these kinds: a period where they follow one,
    else the list itself."""
    fields: dict[str, Any] = {"global_every": 0, "unrotated_every": 0, "layer_kinds": ()}
    for name, field in (("global", "global_every"), ("unrotated", "unrotated_every")):
        period = kinds.index(name) + 1 if name in kinds else 0
        wanted = [name if period and n % period == 0 else "local" for n in range(1, len(kinds) + 1)]
        if list(kinds) == wanted:
            return {**fields, field: period}
    return {**fields, "layer_kinds": tuple(kinds)}


def layer_windows(c: Any) -> list[int]:
    """The window of each layer, 0 for those that see the whole text."""
    return [KINDS[layer_kind(c, index)].window(c) for index in range(c.layers)]


def longest_window(c: Any) -> int:
    """The longest window of any kind of layer, 0 where one sees the whole text."""
    windows = [KINDS[name].window(c) for name in layer_pattern(c)]
    # One layer that sees all keeps every token in the cache, whatever the others' windows.
    return 0 if 0 in windows else max(windows)


def layer_kind(c: Any, index: int) -> str:
    """The kind of the layer with this number."""
    pattern = layer_pattern(c)
    return pattern[index % len(pattern)]
