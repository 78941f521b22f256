"""`Family`: how the models of one family are stored in Hugging Face folders."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from research.interop.storage.layout import Rule
from research.models.config import ModelConfig


@dataclass(frozen=True)
class Family:
    """A family of models, for reading and writing.

    model_types   values of model_type in config.json
    serves        True for the configs that this family can write
    read_config   a model's config from config.json and the names of the stored tensors; ValueError
                  for settings that our layers do not compute
    write_config  config.json of a model
    rules         the tensors, named as the full model's class saves them
    prefix        start of the names that the bare model's class leaves out
    renames       (regex, replacement) for tensor names of older releases
    unused        (regex, reason) of tensors that hold nothing of the model
    further       the same of those that depend on config.json and the model
    copies        (name, parameter) of tensors that repeat a parameter
    classes       by model_type the start of its classes' names, where several have the same models
    norm_offset   number that the files leave out of the scales of RMS norms, see
                  `research.interop.storage.norm_offset`
    """

    # Functions and tables only: a family has no layers of its own, all compute with `models/`.
    model_types: tuple[str, ...]
    serves: Callable[[ModelConfig], bool]
    read_config: Callable[[Mapping[str, Any], Set[str]], ModelConfig]
    write_config: Callable[[ModelConfig], dict[str, Any]]
    rules: Callable[[ModelConfig], tuple[Rule, ...]]
    prefix: str = ""
    renames: tuple[tuple[str, str], ...] = ()
    unused: tuple[tuple[str, str], ...] = ()
    further: Callable[[Mapping[str, Any], ModelConfig], tuple[tuple[str, str], ...]] = (
        lambda values, c: ()
    )
    copies: tuple[tuple[str, str], ...] = ()
    classes: Mapping[str, str] = field(default_factory=dict)
    norm_offset: float = 0.0
