"""What an architecture of llama.cpp says of its models, and the metadata that all of them spell
alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from research.interop.storage.layout import Rule
from research.interop.storage.tensors import Tensor
from research.models.config import ModelConfig
from research.ops.rope import RopeScaling


@dataclass(frozen=True)
class Metadata:
    """The hyperparameters of a file and the shapes of its tensors."""

    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def kind(self) -> str:
        """The architecture's name, which hyperparameters begin with."""
        return self.values.get("general.architecture", "")

    def number(self, key: str, default: Any = None) -> Any:
        """The hyperparameter "KIND.key". ValueError where it is no number of at least 0, or absent
        without a default."""
        value = self.values.get(f"{self.kind}.{key}", default)
        if type(value) not in (int, float) or not 0 <= value < 2**40:
            raise ValueError(f"the metadata has {self.kind}.{key}={value!r}; wanted a number")
        return value


@dataclass(frozen=True)
class Architecture:
    """One or several architectures that share layers, in both directions.

    `name_of` gives the name that a model is written under, None where it is none of these.
    `read_config` takes the metadata and refuses what our layers do not compute; `write_config`
    gives the metadata of a model, the tokenizer's aside. `rules` are the tensors, [out, in] in
    numpy's order.
    """

    names: tuple[str, ...]
    name_of: Callable[[ModelConfig], str | None]
    read_config: Callable[[Metadata], ModelConfig]
    write_config: Callable[[ModelConfig], dict[str, Any]]
    rules: Callable[[ModelConfig], tuple[Rule, ...]]


def read_shape(m: Metadata) -> dict[str, Any]:
    """The fields of a ModelConfig that every architecture has under the same key."""
    heads, d_model = m.number("attention.head_count"), m.number("embedding_length")
    head_size = m.number("attention.key_length", d_model // max(1, heads))
    others = (
        m.number("attention.value_length", head_size),
        m.number("rope.dimension_count", head_size),
    )
    if others != (head_size, head_size):
        raise ValueError("keys, values and rotary dimensions of different sizes are not supported")
    table = m.tensors.get("token_embd.weight")
    return {
        "kind": "decoder",
        "vocab_size": table.shape[0] if table else 1,
        "layers": m.number("block_count"),
        "d_model": d_model,
        "heads": heads,
        "kv_heads": m.number("attention.head_count_kv", heads),
        "head_size": head_size,
        "d_ff": m.number("feed_forward_length"),
        "max_length": m.number("context_length"),
        "rope_theta": float(m.number("rope.freq_base", 10000.0)),
        "rope_scaling": _read_linear(m),
        "norm_eps": shortest(m.number("attention.layer_norm_rms_epsilon")),
        "tied": "output.weight" not in m.tensors,
    }


def write_shape(c: ModelConfig, kind: str) -> dict[str, Any]:
    """What `read_shape` reads, with the architecture's name."""
    values = {
        "general.architecture": kind,
        f"{kind}.block_count": c.layers,
        f"{kind}.context_length": c.max_length,
        f"{kind}.embedding_length": c.d_model,
        f"{kind}.feed_forward_length": c.d_ff,
        f"{kind}.attention.head_count": c.heads,
        f"{kind}.attention.head_count_kv": c.kv_heads,
        f"{kind}.attention.key_length": c.head_size,
        f"{kind}.attention.value_length": c.head_size,
        f"{kind}.attention.layer_norm_rms_epsilon": float(c.norm_eps),
        f"{kind}.rope.dimension_count": c.head_size,
        f"{kind}.rope.freq_base": float(c.rope_theta),
        f"{kind}.vocab_size": c.vocab_size,
    }
    if c.rope_scaling.kind == "linear" and c.rope_scaling.factor != 1.0:
        values[f"{kind}.rope.scaling.type"] = "linear"
        values[f"{kind}.rope.scaling.factor"] = float(c.rope_scaling.factor)
    return values


def shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-5 for 9.99999974e-06."""
    return float(str(np.float32(value)))


def _read_linear(m: Metadata) -> RopeScaling:
    """Linear scaling of the rotary positions; Llama 3's is a tensor, see `rope_factors`."""
    kind = m.values.get(f"{m.kind}.rope.scaling.type", "none")
    factor = m.number("rope.scaling.factor", 0.0)
    if kind in ("none", "") and not factor:
        return RopeScaling()
    if kind != "linear":
        raise ValueError(f"rotary scaling {kind!r} is not supported, only linear and Llama 3's")
    if factor == 1:
        return RopeScaling()
    return RopeScaling(factor=shortest(factor), kind="linear")
