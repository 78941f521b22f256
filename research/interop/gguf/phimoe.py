"""The architecture phimoe, of Phi-3.5-MoE: LLaMA's layers with layer norms, biases and experts that
SparseMixer chooses.

The files are read as the model that Microsoft published. llama.cpp computes another one from them:
it builds phi3's layers, whose norms are RMS norms, and weighs two experts by their softmax.
"""

from typing import Any

from research.interop.gguf import phi3
from research.interop.gguf.architecture import (
    Architecture,
    Metadata,
    check_square,
    check_untied,
    read_biases,
    read_shape,
    write_shape,
)
from research.interop.gguf.decoder_rules import rotated_rules
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig

_KIND, _CHOSEN = "phimoe", 2
# Layer norms whose epsilon has the RMS norms' key.
_EPSILON = ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon")


def read_config(m: Metadata) -> ModelConfig:
    """The model that a file's metadata describes. ValueError for other than two experts a token."""
    if (used := m.number("expert_used_count", _CHOSEN)) != _CHOSEN:
        raise ValueError(f"the metadata has {_KIND}.expert_used_count={used}; SparseMixer takes 2")
    return ModelConfig(
        **read_shape(m) | {"norm": "layer"},
        **read_biases(m),
        window=m.number("attention.sliding_window", 0),
        head_bias="output.bias" in m.tensors,
        experts=m.number("expert_count"),
        experts_per_token=_CHOSEN,
        router="sparsemixer",
    )


def name_of(c: ModelConfig) -> str | None:
    """ "phimoe" for a rotary decoder with layer norms and SparseMixer's experts."""
    rotary = c.kind == "decoder" and c.position == "rope" and not c.kv_latent
    mixed = c.experts > 0 and c.router == "sparsemixer"
    return _KIND if rotary and c.norm == "layer" and mixed else None


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The metadata of a model. ValueError for tied tables, heads of another width and a model
    without biases, which llama.cpp does not load under this name."""
    check_square(c, _KIND)
    check_untied(c, _KIND)
    if c.attention_bias != "all" or not c.head_bias:
        raise ValueError(
            f"GGUF's {_KIND} architecture has biases of attention and head, and this model "
            f"attention_bias={c.attention_bias!r} and head_bias={c.head_bias}; use --to=hf"
        )
    values = {key.replace(*_EPSILON): value for key, value in write_shape(c, _KIND).items()}
    if c.window:
        values[f"{_KIND}.attention.sliding_window"] = c.window
    counts = {"expert_count": c.experts, "expert_used_count": c.experts_per_token}
    return values | {f"{_KIND}.{name}": count for name, count in counts.items()}


def rules(c: ModelConfig, name: str) -> tuple[Rule, ...]:
    """The tensors of a model: LLaMA's, and the biases of the norms and the head."""
    found = [
        *rotated_rules(c, "p h"),
        Rule("blk.{layer}.attn_norm.bias", "layers/attention_norm/bias", "D -> D"),
        Rule("blk.{layer}.ffn_norm.bias", "layers/mlp_norm/bias", "D -> D"),
        Rule("output_norm.bias", "final_norm/bias", "D -> D"),
    ]
    return (*found, *([Rule("output.bias", "head/output_bias", "V -> V")] if c.head_bias else []))


def notes(c: ModelConfig) -> list[str]:
    """Lines on what llama.cpp computes otherwise of every such model, and on the window."""
    other = (
        "llama.cpp computes the architecture phimoe with RMS norms and experts whose weights add "
        "up to 1, this model with layer norms and SparseMixer: its logits are other ones"
    )
    return [other, *phi3.notes(c, _KIND)]


ARCHITECTURE = Architecture(
    names=(_KIND,),
    name_of=name_of,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    notes=notes,
)
