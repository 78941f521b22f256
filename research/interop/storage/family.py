"""What a family of models says of its form in Hugging Face folders."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from research.interop.storage.layout import Rule
from research.models.config import ModelConfig


@dataclass(frozen=True)
class Family:
    """A family in both directions.

    `read_config` takes a config.json and the names of the tensors there are, and refuses what our
    layers do not compute; `write_config` gives the config.json of a model, of which `serves` says
    whether it is one of the family. `rules` are the tensors, named as the full model's class saves
    them; `prefix` is what the bare model's class leaves out. `renames` are (regex, replacement) for
    names of older releases. `unused` are (regex, reason) of tensors that hold nothing of the model,
    and `copies` (name, parameter) of those that repeat one. `norm_offset` is what its files leave
    out of the scales of RMS norms, see `research.interop.storage.norm_offset`.
    """

    model_types: tuple[str, ...]
    serves: Callable[[ModelConfig], bool]
    read_config: Callable[[Mapping[str, Any], Set[str]], ModelConfig]
    write_config: Callable[[ModelConfig], dict[str, Any]]
    rules: Callable[[ModelConfig], tuple[Rule, ...]]
    prefix: str = ""
    renames: tuple[tuple[str, str], ...] = ()
    unused: tuple[tuple[str, str], ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    norm_offset: float = 0.0
