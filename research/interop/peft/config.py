"""peft's adapter_config.json: the fields that give the tensors their meaning. Fields that are not
supported are refused by name."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.files import read_json

FILE = "adapter_config.json"
LORA, IA3, PREFIX_TUNING, PROMPT_TUNING, P_TUNING = (
    "LORA",
    "IA3",
    "PREFIX_TUNING",
    "PROMPT_TUNING",
    "P_TUNING",
)
# The names are peft's `PeftType`.
KINDS = (LORA, IA3, PREFIX_TUNING, PROMPT_TUNING, P_TUNING)
# Fields that change nothing in what the tensors compute: how modules were chosen, how tensors were
# initialized, where they came from.
_SILENT = {
    "peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision",
    "inference_mode", "target_modules", "target_parameters", "exclude_modules",
    "layers_to_transform", "layers_pattern", "modules_to_save", "fan_in_fan_out", "megatron_core",
    "eva_config", "loftq_config", "corda_config", "lora_ga_config", "runtime_config",
    "qalora_group_size", "lora_dropout", "init_ia3_weights", "feedforward_modules",
    "num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers",
    "num_transformer_submodules", "prompt_tuning_init", "prompt_tuning_init_text",
    "tokenizer_name_or_path", "tokenizer_kwargs", "prefix_projection", "encoder_hidden_size",
    "init_weights", "encoder_reparameterization_type", "encoder_num_layers", "encoder_dropout",
}  # fmt: skip
_READ = {
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "bias",
    "ensure_weight_tying",
}
# Initializations that leave the base's weights unchanged. PiSSA, OLoRA and LoftQ subtract from
# them, so their adapters do not fit the original base.
_INITS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class PeftConfig:
    """The fields of an adapter_config.json that say what its tensors compute.

    kind           peft_type, one of `KINDS`
    base           name or path of the base model, "" if the file has none
    rank, alpha    LoRA's r and lora_alpha; the defaults are peft's
    ranks, alphas  rank_pattern and alpha_pattern: numbers for modules whose name a regex matches
    rank_stable    use_rslora: the update is alpha / sqrt(r), not alpha / r
    dora           use_dora
    dropout        lora_dropout
    tied           ensure_weight_tying: the adapter of a tied table is its head's too
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
    if not isinstance(values, dict) or values.get("peft_type") not in KINDS:
        kind = values.get("peft_type") if isinstance(values, dict) else values
        raise ValueError(f"{file} has peft_type={kind!r}; there are {', '.join(KINDS)}")
    # peft writes every field of its version; unknown ones that are unset or off compute nothing.
    for name, value in values.items():
        if name not in _SILENT | _READ and value not in (None, False, 0, "", [], {}):
            raise ValueError(
                f"{file} has {name}={value!r}, which is not supported; merge the adapter with peft"
            )
    if values.get("bias", "none") != "none":
        raise ValueError(f"{file} has bias={values['bias']!r}; only bias='none' is supported")
    if values.get("init_lora_weights", True) not in _INITS:
        raise ValueError(
            f"{file} has init_lora_weights={values['init_lora_weights']!r}, which changes the "
            "base's weights: save it with "
            "peft's path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )
    # Absent fields take peft's defaults, r = 8 and lora_alpha = 8.
    return PeftConfig(
        values["peft_type"],
        str(values.get("base_model_name_or_path") or ""),
        _number(file, values, "r", 8, int),
        _number(file, values, "lora_alpha", 8),
        _pattern(file, values, "rank_pattern", int),
        _pattern(file, values, "alpha_pattern"),
        values.get("use_rslora") is True,
        values.get("use_dora") is True,
        _number(file, values, "lora_dropout", 0.0),
        values.get("ensure_weight_tying") is True,
    )


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
