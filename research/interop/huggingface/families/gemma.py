"""Gemma 1, 2 and 3 (text) in Hugging Face's names.

Beyond LLaMA's layers (arXiv:2408.00118, section 2; arXiv:2503.19786, section 2): embeddings are
multiplied by sqrt(D), norms scale by 1 + w, and what attention and feed-forward give is normalised
before it is added. Gemma 2 caps scores and logits, Gemma 3 normalises queries and keys. Most layers
see a window, every second (Gemma 2) or sixth (Gemma 3) all of the text.
"""

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from research.interop.huggingface.families import llama
from research.interop.huggingface.families.fields import (
    THEIR_ACTIVATIONS,
    activation,
    flag,
    integer,
    number,
    refuse,
)
from research.interop.huggingface.families.rope import read_rope, write_scaling
from research.interop.storage.family import Family
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig
from research.ops.rope_scaling import RopeScaling

# Every so many layers one is global, in a config.json that does not say. These are the defaults of
# transformers' classes.
_PERIODS = {"gemma2": 2, "gemma3_text": 6}
# transformers' own defaults for fields that a config.json leaves out.
_DEFAULTS = {
    "gemma": {"num_key_value_heads": 16, "max_position_embeddings": 8192},
    "gemma2": {"num_key_value_heads": 4, "max_position_embeddings": 8192},
    "gemma3_text": {"num_key_value_heads": 4, "max_position_embeddings": 131072},
}
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json of transformers 4 or 5 describes; `names`, the tensors, are not
    asked. ValueError for settings that our layers do not compute."""
    kind = values["model_type"]
    values = {**_DEFAULTS[kind], **values}
    d_model = integer(values, "hidden_size")
    # Gemma's heads are wider than d_model / heads; 256 is the default of all three classes.
    heads, head_size = integer(values, "num_attention_heads"), integer(values, "head_dim", 256)
    # EmbeddingGemma sees both sides with the layers of Gemma 3.
    refuse(values, use_bidirectional_attention=False)
    window, period = _read_layers(values)
    theta, scaling, local_theta = _read_rope(values, window, period)
    return ModelConfig(
        kind="decoder",
        vocab_size=integer(values, "vocab_size"),
        layers=integer(values, "num_hidden_layers"),
        d_model=d_model,
        heads=heads,
        kv_heads=integer(values, "num_key_value_heads", heads),
        head_size=head_size,
        d_ff=integer(values, "intermediate_size"),
        max_length=integer(values, "max_position_embeddings"),
        rope_theta=theta,
        rope_scaling=scaling,
        local_rope_theta=local_theta,
        window=window,
        global_every=period,
        norm_offset=1.0,
        norm_eps=number(values, "rms_norm_eps", 1e-6),
        branch_norm=kind != "gemma",
        query_norm=kind == "gemma3_text",
        activation=_read_activation(values),
        attention_bias="all" if flag(values, "attention_bias", False) else "none",
        attention_scale=_read_scale(values, head_size),
        attention_softcap=_read_cap(values, "attn_logit_softcapping", 50.0),
        logit_softcap=_read_cap(values, "final_logit_softcapping", 30.0),
        # transformers rounds this factor to the type of the weights; in float32 they agree.
        embedding_scale=d_model**0.5,
        tied=flag(values, "tie_word_embeddings", True),
        init_std=number(values, "initializer_range", 0.02),
    )


def _read_activation(values: Mapping[str, Any]) -> str:
    """Our name of the activation; the first config.json of Gemma 1 had hidden_act "gelu" and meant
    the approximation by tanh."""
    # "hidden_activation" came later and wins, as it does in transformers.
    name = "hidden_act" if values.get("hidden_activation") is None else "hidden_activation"
    ours = activation(values, name, "gelu_pytorch_tanh")
    return "gelu_tanh" if (name, ours) == ("hidden_act", "gelu") else ours


def _read_scale(values: Mapping[str, Any], head_size: int) -> float:
    """The factor of the attention scores, 0 for the usual head_size ** -0.5."""
    if values["model_type"] == "gemma":
        return 0.0
    # scores are q k / sqrt(scalar): 256 for most sizes, d_model / heads for the largest.
    scalar = number(values, "query_pre_attn_scalar", 256)
    return 0.0 if scalar == head_size else scalar**-0.5


def _read_cap(values: Mapping[str, Any], name: str, default: float) -> float:
    """The bound of a soft cap, 0 for none. A null means no cap; the default stands in only for a
    field that a Gemma 2 file leaves out."""
    if name not in values and values["model_type"] == "gemma2":
        return default
    return number(values, name, 0.0)


def _read_layers(values: Mapping[str, Any]) -> tuple[int, int]:
    """(window, period): tokens that a local layer sees, and every how many layers one is global.
    Both are 0 where every layer is global, and the period alone where none is. ValueError for
    `layer_types` in another order."""
    kind, count = values["model_type"], integer(values, "num_hidden_layers")
    if kind == "gemma":
        return 0, 0
    types = values.get("layer_types")
    if types is None:
        period = integer(values, "sliding_window_pattern", _PERIODS[kind])
    else:
        # The first global layer tells the period, and one beyond the last layer means that no layer
        # is global. The comparison below then holds the whole list to that.
        period = types.index(_GLOBAL) + 1 if _GLOBAL in types else count + 1
    wanted = [_LOCAL if (layer + 1) % period else _GLOBAL for layer in range(count)]
    if types is not None and list(types) != wanted:
        raise ValueError(
            f"config.json has layer_types={types}; global layers after equal numbers of local ones "
            "are supported"
        )
    if period == 1:
        return 0, 0
    return integer(values, "sliding_window", 4096), 0 if period > count else period


def _read_rope(
    values: Mapping[str, Any], window: int, period: int
) -> tuple[float, RopeScaling, float]:
    """(base, scaling, local base) of the rotary positions; the local base is 0 where local layers
    rotate as the global ones do. ValueError where the positions of local layers are scaled."""
    if values["model_type"] != "gemma3_text":
        return *read_rope(values), 0.0
    # Local layers rotate by a base of their own (10,000), global ones by 1,000,000, which only
    # they may scale.
    kinds, scaling = values.get("rope_parameters") or {}, values.get("rope_scaling") or {}
    # Version 5 has parameters for each type of layer, version 4 two bases beside each other; where
    # a file has both, the scaling of version 4 is added to the global layers' parameters.
    thetas = {"rope_theta": 1e6, "rope_local_base_freq": 1e4} | dict(values)
    length = {"max_position_embeddings": values["max_position_embeddings"]}
    wide = read_rope(
        {
            **length,
            "rope_theta": thetas["rope_theta"],
            "rope_parameters": {**(kinds.get(_GLOBAL) or {}), **scaling},
        }
    )
    narrow = read_rope(
        {"rope_theta": thetas["rope_local_base_freq"], "rope_parameters": kinds.get(_LOCAL)}
    )
    if narrow[1] != RopeScaling():
        raise ValueError(
            "config.json scales the rotary positions of local layers; none is supported"
        )
    # With one type of layer there is one rotation: that of the type that is there.
    if not window:
        return *wide, 0.0
    if not period:
        return *narrow, 0.0
    return *wide, 0.0 if wide == narrow else narrow[0]


def serves(c: ModelConfig) -> bool:
    """True for a rotary decoder with norms before attention and MLP that has scaled embeddings or
    norms after both too."""
    return llama.is_rotary_decoder(c) and c.norm_before and not llama.has_layers(c)


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json, in the spelling of transformers 4, which version 5 reads too."""
    if not c.branch_norm:
        kind, name = "gemma", "GemmaForCausalLM"
    elif c.query_norm:
        kind, name = "gemma3_text", "Gemma3ForCausalLM"
    else:
        kind, name = "gemma2", "Gemma2ForCausalLM"
    act = "gelu_pytorch_tanh" if c.activation == "gelu_tanh" else THEIR_ACTIVATIONS[c.activation]
    values = {
        "architectures": [name],
        "model_type": kind,
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_size,
        # Releases differ in which of the two they read.
        "hidden_act": act,
        "hidden_activation": act,
        "max_position_embeddings": c.max_length,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": write_scaling(c),
        "tie_word_embeddings": c.tied,
        "initializer_range": c.init_std,
        "attention_bias": c.attention_bias == "all",
        "attention_dropout": 0.0,
    }
    return values if kind == "gemma" else values | _write_layers(c, kind)


def _write_layers(c: ModelConfig, kind: str) -> dict[str, Any]:
    """The fields that Gemma 2 and 3 have and Gemma 1 has not."""
    # The inverse of `_read_layers`: 1 for global layers only, beyond the last for none.
    period = (c.global_every or c.layers + 1) if c.window else 1
    scalar = c.attention_scale**-2 if c.attention_scale else c.head_size
    # The scalar is a whole number in every published model; ** -2 of a float misses it by an ulp,
    # which would change the scale on the way back.
    whole = round(scalar)
    values = {
        "query_pre_attn_scalar": whole if whole**-0.5 == c.attention_scale else scalar,
        "attn_logit_softcapping": c.attention_softcap or None,
        "final_logit_softcapping": c.logit_softcap or None,
        "sliding_window": c.window or 4096,
        "layer_types": [_LOCAL if (n + 1) % period else _GLOBAL for n in range(c.layers)],
    }
    if kind == "gemma3_text":
        local_theta = c.local_rope_theta or c.rope_theta
        values |= {"rope_local_base_freq": local_theta, "sliding_window_pattern": period}
    return values


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """LLaMA's tensors and, from Gemma 2 on, two more norms a layer.

    The same name stands for two things: `post_attention_layernorm` is the norm before the MLP in
    LLaMA and Gemma 1, and the norm of attention's output in Gemma 2 and 3.
    """
    llama_rules = llama.rules(c)
    if not c.branch_norm:
        return llama_rules
    layer = "model.layers.{layer}"
    before = f"{layer}.pre_feedforward_layernorm.weight"
    shared = [
        replace(r, name=before) if r.path == "layers/mlp_norm/scale" else r for r in llama_rules
    ]
    return (
        *shared,
        Rule(
            f"{layer}.post_attention_layernorm.weight", "layers/attention_out_norm/scale", "D -> D"
        ),
        Rule(f"{layer}.post_feedforward_layernorm.weight", "layers/mlp_out_norm/scale", "D -> D"),
    )


FAMILY = Family(
    model_types=("gemma", "gemma2", "gemma3_text"),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    prefix="model.",
    unused=((r".*\.rotary_emb\.inv_freq", "computed from rope_theta"),),
    copies=(("lm_head.weight", "embed/table"),),
    norm_offset=1.0,  # files hold w, layers multiply by 1 + w
)
