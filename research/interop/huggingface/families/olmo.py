"""OLMo 2 and 3 (arXiv:2501.00656, section 3) in Hugging Face's names.

LLaMA's layers with the norms behind the branches and none before them, and with norms of queries
and keys over all heads of a token. In OLMo 3 three of four layers see a window, and only the fourth
scales its rotary positions.
"""

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from research.interop.huggingface.families import llama
from research.interop.huggingface.families.fields import flag, integer
from research.interop.huggingface.families.rope import read_rope
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig
from research.ops.rope_scaling import RopeScaling

# Where config.json leaves a field out, transformers takes the default of the class.
_DEFAULTS = {"rms_norm_eps": 1e-5, "max_position_embeddings": 2048}
HEAD_NORMS = ("q_norm", "k_norm")
_THETA = {"olmo2": 10000.0, "olmo3": 500000.0}


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json describes; `names`, the tensors, are not asked. ValueError for
    settings that our layers do not compute."""
    kind, values = values["model_type"], {**_DEFAULTS, **values}
    windows = _read_windows(values) if kind == "olmo3" else {}
    rope = _read_rope(values, windows) if kind == "olmo3" else _rope(*read_rope(values))
    return ModelConfig(
        **llama.read_sizes(values),
        **windows,
        **rope,
        branch_norm=True,
        norm_before=False,
        query_norm=True,
        query_norm_over="heads",
        attention_bias="all" if flag(values, "attention_bias", False) else "none",
        tied=flag(values, "tie_word_embeddings", False),
    )


def _read_windows(values: Mapping[str, Any]) -> dict[str, Any]:
    count, types = integer(values, "num_hidden_layers"), values.get("layer_types")
    if types is None:
        types = [llama.FULL if n % 4 == 0 else llama.SLIDING for n in range(1, count + 1)]
    window = 4096 if "sliding_window" not in values else integer(values, "sliding_window", 0)
    return llama.windows_by_layer(window, types, count)


def _rope(theta: float, scaling: RopeScaling) -> dict[str, Any]:
    return {"rope_theta": theta, "rope_scaling": scaling}


def _read_rope(values: Mapping[str, Any], windows: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary fields of OLMo 3. ValueError where the positions of layers with a window are
    scaled."""
    nested, top = values.get("rope_parameters") or {}, {**values, "rope_parameters": None}
    if nested and not all(isinstance(one, Mapping) or one is None for one in nested.values()):
        nested = {llama.FULL: nested, llama.SLIDING: nested}
    # A scaling in the spelling of transformers 4 is added to the global layers' parameters.
    scaling = {**(nested.get(llama.FULL) or {}), **(values.get("rope_scaling") or {})}
    default = _THETA["olmo3"]
    wide = read_rope({**top, "rope_scaling": scaling}, default)
    narrow = read_rope({**top, "rope_scaling": nested.get(llama.SLIDING)}, default)
    if narrow[1] != RopeScaling():
        raise ValueError(
            "config.json scales the rotary positions of layers with a window; none is supported"
        )
    kinds = windows.get("layer_kinds") or ()
    if not windows:
        return _rope(*wide)
    if not windows.get("global_every") and "global" not in kinds:
        return _rope(*narrow)
    return {**_rope(*wide), "local_rope_theta": 0.0 if wide == narrow else narrow[0]}


def serves(c: ModelConfig) -> bool:
    """True for a rotary decoder whose branches have a norm behind them alone."""
    return llama.is_rotary_decoder(c) and c.branch_norm and not c.norm_before


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json."""
    kind, name = ("olmo3", "Olmo3ForCausalLM") if c.window else ("olmo2", "Olmo2ForCausalLM")
    values = {
        "architectures": [name],
        "model_type": kind,
        **llama.write_sizes(c),
        "attention_bias": c.attention_bias == "all",
    }
    if kind == "olmo2":
        return values
    # transformers 4 gives layers with a window the same base, and none of the scaling; version 5
    # reads what is said for each type of layer.
    full = {"rope_theta": c.rope_theta, "rope_type": "default", **(values["rope_scaling"] or {})}
    theta = c.local_rope_theta or c.rope_theta
    return {
        **values,
        "rope_parameters": {
            llama.FULL: full,
            llama.SLIDING: {"rope_theta": theta, "rope_type": "default"},
        },
        "sliding_window": c.window,
        "layer_types": llama.layer_types(c),
    }


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """LLaMA's tensors with two norms a layer that stand elsewhere, and wide norms of queries and
    keys."""
    layer, ours = "model.layers.{layer}", "layers"
    replaced = ("input_layernorm", "post_attention_layernorm", *HEAD_NORMS)
    kept = [r for r in llama.rules(c) if r.name.split(".")[-2] not in replaced]
    return (
        *kept,
        *head_norm_rules(),
        Rule(
            f"{layer}.post_attention_layernorm.weight", f"{ours}/attention_out_norm/scale", "D -> D"
        ),
        Rule(f"{layer}.post_feedforward_layernorm.weight", f"{ours}/mlp_out_norm/scale", "D -> D"),
    )


def head_norm_rules() -> tuple[Rule, ...]:
    """The norms of queries and keys over all heads."""
    theirs, ours = "model.layers.{layer}.self_attn", "layers/attention"
    return (
        Rule(f"{theirs}.q_norm.weight", f"{ours}/query_norm", "(N H) -> N H"),
        Rule(f"{theirs}.k_norm.weight", f"{ours}/key_norm", "(K H) -> K H"),
    )


FAMILY = replace(
    llama.FAMILY,
    model_types=("olmo2", "olmo3"),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
)
