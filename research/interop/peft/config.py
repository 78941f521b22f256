"""peft's adapter_config.json: the fields that give the tensors their meaning. Fields that are not
supported are refused by name."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.files import read_json
from research.interop.peft.kinds import ADALORA, KINDS, READ, ROTATION, SILENT, TRAINABLE_TOKENS

FILE = "adapter_config.json"
# Initializations that leave the base's weights unchanged. PiSSA, OLoRA and LoftQ subtract from
# them, so their adapters do not fit the original base.
_INITS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class PeftConfig:
    """The fields of an adapter_config.json that say what its tensors compute.

    kind           peft_type, a row of `research.interop.peft.kinds.KINDS`
    base           name or path of the base model, "" if the file has none
    rank, alpha    r and lora_alpha of LoRA and their like; the defaults are peft's
    ranks, alphas  rank_pattern and alpha_pattern: numbers for modules whose name a regex matches
    rank_stable    use_rslora: the update is alpha / sqrt(r), not alpha / r
    dora           use_dora
    dropout        lora_dropout
    task           task_type, "" for none
    tied           ensure_weight_tying: the adapter of a tied table is its head's too
    layers         layer_replication: the layer of the base that each layer is; () for its own
    tokens         the ids of tokens with rows of their own, by ends of modules' names, "" for any
    rotation       OFT's fields, `research.interop.peft.kinds.ROTATION`
    """

    kind: str
    base: str
    rank: int = 8
    alpha: float = 8.0
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    rank_stable: bool = False
    dora: bool = False
    dropout: float = 0.0
    tied: bool = False
    layers: tuple[int, ...] = ()
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    rotation: Mapping[str, Any] = field(default_factory=lambda: ROTATION)
    task: str = ""

    def rank_of(self, module: str) -> int:
        """The rank of a module: of the first pattern that matches the end of its name, else
        `rank`."""
        return self.ranks.get(_matching(self.ranks, module), self.rank)

    def scale_of(self, module: str) -> float:
        """The factor of a module's update: alpha / R, or alpha / sqrt(R) for rsLoRA
        (arXiv:2312.03732)."""
        # The patterns of ranks and of alphas are matched apart: a module may be in either, both
        # or none.
        rank = self.rank_of(module)
        alpha = self.alphas.get(_matching(self.alphas, module), self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stable else rank)


def read_config(folder: Path) -> PeftConfig:
    """The config of the adapter in a folder. ValueError, one line that names the field, for a
    folder without adapter_config.json and for fields that are not supported."""
    file = folder / FILE
    if not file.is_file():
        raise ValueError(
            f"{folder} is no adapter: wanted a folder of peft's save_pretrained, with {FILE}"
        )
    values = read_json(file)
    name = values.get("peft_type") if isinstance(values, dict) else values
    if name not in KINDS:
        raise ValueError(
            f"{file} has peft_type={name!r}; there are {', '.join(KINDS)}; merge the adapter with "
            "peft's merge_and_unload and load the merged model"
        )
    _refuse(file, values)
    kind = KINDS[name]
    # AdaLoRA's pattern says which ranks its tensors have kept, LoRA's how many they have.
    ranks = {} if name == ADALORA else _pattern(file, values, "rank_pattern", int)
    # Absent fields take peft's defaults, r = 8 and lora_alpha = 8.
    return PeftConfig(
        name,
        str(values.get("base_model_name_or_path") or ""),
        _number(file, values, kind.rank, kind.default, int),
        _number(file, values, kind.alpha, 8),
        ranks,
        _pattern(file, values, "alpha_pattern"),
        values.get("use_rslora") is True,
        values.get("use_dora") is True,
        _number(file, values, kind.dropout, 0.0),
        values.get("ensure_weight_tying") is True,
        _layers(file, values),
        _tokens(file, values),
        _rotation(file, values),
        str(values.get("task_type") or ""),
    )


def _refuse(file: Path, values: Mapping[str, Any]) -> None:
    """ValueError for a field that is not supported."""
    kind = KINDS[values["peft_type"]]
    # peft writes every field of its version; unknown ones that are unset or off compute nothing.
    for name, value in values.items():
        if name not in SILENT | READ and value not in (None, False, 0, "", [], {}):
            raise ValueError(
                f"{file} has {name}={value!r}, which is not supported; merge the adapter with peft"
            )
    biases = ["none", "all", kind.bias] if kind.bias else ["none"]
    if values.get("bias", "none") not in biases:
        raise ValueError(f"{file} has bias={values['bias']!r}; there are {', '.join(biases)}")
    if values.get("init_lora_weights", True) not in _INITS:
        raise ValueError(
            f"{file} has init_lora_weights={values['init_lora_weights']!r}, which changes the "
            "base's weights: save it with "
            "peft's path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )


def _layers(file: Path, values: Mapping[str, Any]) -> tuple[int, ...]:
    """The base's layer of each layer, from pairs (first, end)."""
    pairs = values.get("layer_replication") or []
    valid = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and n >= 0 for n in pair)
        for pair in pairs
    )
    layers = [layer for pair in pairs for layer in range(*pair)] if valid else []
    if pairs and not 0 < len(layers) < 100_000:
        raise ValueError(
            f"{file} has layer_replication={pairs!r}; wanted pairs [first layer, end] of the base"
        )
    return tuple(layers)


def _tokens(file: Path, values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Ids by ends of modules' names; a list is for any module."""
    alone = values["peft_type"] == TRAINABLE_TOKENS
    field = "token_indices" if alone else "trainable_token_indices"
    ids = values.get(field) or {}
    by_end = ids if isinstance(ids, dict) else {"": ids}
    for rows in by_end.values():
        if not isinstance(rows, list) or not all(type(n) is int and n >= 0 for n in rows):
            raise ValueError(
                f"{file} has {field}={ids!r}; wanted ids of tokens, or these by module"
            )
    return {end: tuple(rows) for end, rows in by_end.items()}


def _rotation(file: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """OFT's fields, each of the type of its default."""
    given = {name: values.get(name, default) for name, default in ROTATION.items()}
    for name, default in ROTATION.items():
        if type(given[name]) is not type(default):
            wanted = type(default).__name__
            raise ValueError(f"{file} has {name}={given[name]!r}; wanted a value of type {wanted}")
    return given


def _matching(patterns: Mapping[str, Any], module: str) -> str:
    """The first key that matches, as a regex, the module's name or its end after a dot, as in
    peft's `get_pattern_key`; without a match the name itself."""
    # The name itself is no key then, so `.get` falls back to the default.
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)


def _pattern(
    file: Path, values: Mapping[str, Any], name: str, kind: type = float
) -> dict[str, Any]:
    pattern = values.get(name) or {}
    if not isinstance(pattern, dict):
        raise ValueError(f"{file} has {name}={pattern!r}; wanted numbers by module")
    for key in pattern:
        try:
            re.compile(key)
        except re.error as error:
            raise ValueError(
                f"{file}: {name} has the key {key!r}, which is no regex ({error})"
            ) from None
    return {key: _number(file, pattern, key, None, kind) for key in pattern}


def _number(
    file: Path, values: Mapping[str, Any], name: str, default: Any, kind: type = float
) -> Any:
    value = values.get(name, default)
    # `type` and not isinstance: True is an int, and JSON's true is no number.
    valid = (
        value > 0
        if kind is int and type(value) is int
        else type(value) in (int, float) and kind is float
    )
    if not valid or not abs(value) < 1e30:
        raise ValueError(
            f"{file} has {name}={value!r}; wanted a "
            f"{'positive integer' if kind is int else 'number'}"
        )
    return kind(value)
