"""SmolLM3 (huggingface.co/blog/smollm3) in Hugging Face's names: LLaMA's layers, of which every
fourth rotates neither queries nor keys (arXiv:2501.18795)."""

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from research.interop.huggingface.families import llama
from research.interop.huggingface.families.fields import flag, integer
from research.interop.huggingface.families.rope import read_rope
from research.models.config import ModelConfig
from research.models.kinds import KINDS, layer_kind, spell

# Where config.json leaves a field out, transformers takes the default of the class.
_DEFAULTS = {"num_key_value_heads": 4, "max_position_embeddings": 32768}
_THETA = 2000000.0


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json describes; `names`, the tensors, are not asked. ValueError for
    settings that our layers do not compute."""
    values = {**_DEFAULTS, **values}
    theta, scaling = read_rope(values, _THETA)
    return ModelConfig(
        **llama.read_sizes(values),
        **_read_kinds(values),
        rope_theta=theta,
        rope_scaling=scaling,
        attention_bias="all" if flag(values, "attention_bias", False) else "none",
        mlp_bias=flag(values, "mlp_bias", False),
        tied=flag(values, "tie_word_embeddings", True),
    )


def _read_kinds(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `ModelConfig` that say which layers rotate and which see a window."""
    count = integer(values, "num_hidden_layers")
    rotated, types = values.get("no_rope_layers"), values.get("layer_types")
    if rotated is None:  # 1 for layers that rotate, whatever the name says
        period = integer(values, "no_rope_layer_interval", 4)
        rotated = [int(n % period != 0) for n in range(1, count + 1)]
    if not isinstance(rotated, list) or len(rotated) < count:
        raise ValueError(f"config.json has no_rope_layers={rotated!r}; wanted 0 or 1 a layer")
    used = flag(values, "use_sliding_window", False)
    window = integer(values, "sliding_window", 0) if used else 0
    if types is None:
        types = [llama.FULL if turns else llama.SLIDING for turns in rotated[:count]]
    sees_all = [not window or one == llama.FULL for one in types]
    if not all(sees_all):
        names = {(1, True): "global", (1, False): "local", (0, True): "unrotated"}
        kinds = [
            names.get((int(bool(turns)), whole), "local_unrotated")
            for turns, whole in zip(rotated, sees_all)
        ]
        return {"window": window, **spell(kinds)}
    return spell(["local" if turns else "unrotated" for turns in rotated[:count]])


def serves(c: ModelConfig) -> bool:
    """True for LLaMA's layers where some do not rotate."""
    return llama.serves(c) and bool(c.unrotated_every or _unrotated(c).count(True))


def _unrotated(c: ModelConfig) -> list[bool]:
    return [KINDS[layer_kind(c, index)].rates(c) is None for index in range(c.layers)]


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json."""
    values = {
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        **llama.write_sizes(c),
        "attention_bias": c.attention_bias == "all",
        "mlp_bias": c.mlp_bias,
        "no_rope_layers": [int(not bare) for bare in _unrotated(c)],
        "use_sliding_window": bool(c.window),
        "sliding_window": c.window or None,
        "layer_types": llama.layer_types(c),
    }
    return values | ({"no_rope_layer_interval": c.unrotated_every} if c.unrotated_every else {})


FAMILY = replace(
    llama.FAMILY,
    model_types=("smollm3",),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
)
