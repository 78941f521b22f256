"""What an architecture of llama.cpp has to declare, and the hyperparameters that all architectures
store under the same keys.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from research.interop.storage.layout import Rule
from research.interop.storage.tensors import Tensor
from research.models.config import ModelConfig


@dataclass(frozen=True)
class Metadata:
    """The key-value metadata of a file, and the shapes of its tensors, for an architecture's
    `read_config`."""

    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def kind(self) -> str:
        """The architecture's name, such as "llama": the prefix of its hyperparameters' keys."""
        return self.values.get("general.architecture", "")

    def number(self, key: str, default: Any = None) -> Any:
        """The hyperparameter "KIND.key", such as `number("block_count")`.

        ValueError where it is not a number in [0, 2^40), or absent without a default.
        """
        value = self.values.get(f"{self.kind}.{key}", default)
        # Some files have a list with one number for each layer; such models differ by layer and
        # are refused here.
        if type(value) not in (int, float) or not 0 <= value < 2**40:
            raise ValueError(f"the metadata has {self.kind}.{key}={value!r}; wanted a number")
        return value


@dataclass(frozen=True)
class Architecture:
    """One or several architectures that share layers.

    `names`: as in general.architecture. `name_of(config)`: the name a model is written under, None
    if it is none of these. `read_config(metadata)`: the model; ValueError for what our layers do
    not compute. `write_config(config)`: the metadata, without the tokenizer's. `rules(config,
    name)`: the tensors under that architecture's name, [out, in] in numpy's order, read both ways.
    `notes(config)`: lines for the user on what llama.cpp will not compute of a model.
    `layout(rules, names)`: the rules for a file with tensors of these names, where releases of
    llama.cpp have stored a model in several ways; the rules themselves are how one is written.
    """

    names: tuple[str, ...]
    name_of: Callable[[ModelConfig], str | None]
    read_config: Callable[[Metadata], ModelConfig]
    write_config: Callable[[ModelConfig], dict[str, Any]]
    rules: Callable[[ModelConfig, str], tuple[Rule, ...]]
    notes: Callable[[ModelConfig], list[str]] = lambda c: []
    layout: Callable[[tuple[Rule, ...], Collection[str]], tuple[Rule, ...]] = lambda rules, n: rules


_EPSILON = {"rms": "attention.layer_norm_rms_epsilon", "layer": "attention.layer_norm_epsilon"}


def read_shape(
    m: Metadata, kind: str = "decoder", norm: str = "rms", head_size: int = 0
) -> dict[str, Any]:
    """The fields of `ModelConfig` that every architecture has under the same keys, as keywords; the
    scaling of rotary positions is not among them (`rope_keys`). ValueError for heads whose queries
    and values differ in size, and for a text that is seen otherwise than models of this `kind` see
    it. `norm`: that of the layers, which has a key of its own. `head_size`: of an architecture that
    has it under another key; 0 for the usual one."""
    # llama.cpp reads it of every architecture: whether a token sees no later ones.
    causal = kind == "decoder"
    if (value := m.values.get(f"{m.kind}.attention.causal", causal)) != causal:
        raise ValueError(
            f"the metadata has {m.kind}.attention.causal={value}; only {causal} is supported"
        )
    layers = m.number("block_count")
    if layers > len(m.tensors):  # reading goes through all of them, whatever their number
        raise ValueError(
            f"the metadata has {m.kind}.block_count={layers:,}, and the file holds "
            f"{len(m.tensors):,} tensors; fetch or convert it again"
        )
    # Head sizes default to the width of a head that fills the model; a file may set them apart.
    heads, d_model = m.number("attention.head_count"), m.number("embedding_length")
    if not head_size:
        head_size = m.number("attention.key_length", d_model // max(1, heads))
        if m.number("attention.value_length", head_size) != head_size:
            raise ValueError("keys and values of different sizes are not supported")
    rotated = m.number("rope.dimension_count", head_size)
    # The rows of the table, not "KIND.vocab_size", which many files lack. Without a table the file
    # is refused later, by the tensor's name.
    table = m.tensors.get("token_embd.weight")
    return {
        "kind": kind,
        "norm": norm,
        "vocab_size": table.shape[0] if table else 1,
        "layers": layers,
        "d_model": d_model,
        "heads": heads,
        "kv_heads": m.number("attention.head_count_kv", heads),
        "head_size": head_size,
        "d_ff": m.number("feed_forward_length"),
        "max_length": m.number("context_length"),
        "rope_theta": float(m.number("rope.freq_base", 10000.0)),
        "rotary_size": 0 if rotated == head_size else rotated,
        "norm_eps": shortest(m.number(_EPSILON[norm])),
        # GGUF has no key for tied tables: llama.cpp takes the table where there is no head.
        "tied": "output.weight" not in m.tensors,
    }


def write_shape(c: ModelConfig, kind: str) -> dict[str, Any]:
    """The metadata that `read_shape` reads, with the architecture's name `kind`."""
    values = {
        "general.architecture": kind,
        f"{kind}.block_count": c.layers,
        f"{kind}.context_length": c.max_length,
        f"{kind}.embedding_length": c.d_model,
        f"{kind}.feed_forward_length": c.d_ff,
        f"{kind}.attention.head_count": c.heads,
        f"{kind}.attention.head_count_kv": c.kv_heads,
        # Written also where they are the defaults: heads may be wider than d_model / heads.
        f"{kind}.attention.key_length": c.head_size,
        f"{kind}.attention.value_length": c.head_size,
        f"{kind}.{_EPSILON[c.norm]}": float(c.norm_eps),
        f"{kind}.rope.dimension_count": c.rotary_size or c.head_size,
        f"{kind}.rope.freq_base": float(c.rope_theta),
        f"{kind}.vocab_size": c.vocab_size,
    }
    return values


def read_biases(m: Metadata) -> dict[str, Any]:
    """The fields of `ModelConfig` on biases. No key says them; llama.cpp takes each bias that the
    file has."""
    attention = "none"
    if "blk.0.attn_q.bias" in m.tensors:
        attention = "all" if "blk.0.attn_output.bias" in m.tensors else "qkv"
    return {"attention_bias": attention, "mlp_bias": "blk.0.ffn_up.bias" in m.tensors}


def check_square(c: ModelConfig, kind: str) -> None:
    """ValueError for heads that are together wider or narrower than the model, which llama.cpp
    does not load under some architectures."""
    if c.heads * c.head_size != c.d_model:
        raise ValueError(
            f"GGUF's {kind} architecture has heads of d_model / heads, and this model has "
            f"{c.heads} of {c.head_size} in {c.d_model}; use --to=hf"
        )


def check_untied(c: ModelConfig, kind: str) -> None:
    """ValueError for tied tables, which llama.cpp does not load under some architectures."""
    if c.tied:
        raise ValueError(f"GGUF's {kind} architecture has a head of its own; use --to=hf")


def gelu_note(c: ModelConfig) -> list[str]:
    """A line where a model has the exact GELU, which llama.cpp does not compute."""
    if c.activation != "gelu":
        return []
    return ["llama.cpp computes GELU by its approximation with tanh, this model the exact one"]


def shortest(value: float) -> float:
    """The shortest decimal that rounds to the same float32: 1e-5 for 9.99999974e-06.

    GGUF stores float32, config.json decimals; without this a conversion there and back would change
    every epsilon.
    """
    return float(str(np.float32(value)))
