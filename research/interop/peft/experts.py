"""Adapters on experts that a class holds as two stacked parameters, Mixtral's since transformers 5,
expert by expert.

peft wraps such a module once for each parameter, so the names tell the order and not the parameter,
its shape does:

    gate_up_proj  [E, 2 F, D]   lora_A [E R, D], lora_B [2 F, R E]   of w1 and w3, one A for both
    down_proj     [E, D, F]     lora_A [E R, F], lora_B [D, R E]     of w2
"""

import re
from collections.abc import Mapping

import numpy as np

from research.models.config import ModelConfig

Parts = dict[str, dict[str, np.ndarray]]
_MODULE = r"(.*)\.(?:mlp|block_sparse_moe)\.experts(?:\.base_layer)?"


def experts_apart(parts: Parts, c: ModelConfig) -> tuple[Parts, dict[str, str]]:
    """`parts` with those of stacked experts under each expert's own name, and by it the name that
    rank and alpha patterns go by. ValueError for tensors that are no pair of such a parameter."""
    made: Parts = {}
    names: dict[str, str] = {}
    for name, own in parts.items():
        match = re.fullmatch(_MODULE, name) if c.experts else None
        if match is None:
            made[name] = own
            continue
        parameter, a, b = _parameter(name, own, c)
        for expert in range(c.experts):
            for role, rows in _roles(parameter, c.d_ff).items():
                one = f"{match[1]}.block_sparse_moe.experts.{expert}.{role}"
                made[one] = {
                    "lora_A": a[expert],
                    "lora_B": np.ascontiguousarray(b[rows, :, expert]),
                }
                names[one] = f"{match[1]}.mlp.experts.{parameter}"
    return made, names


def _roles(parameter: str, d_ff: int) -> dict[str, slice]:
    if parameter == "down_proj":
        return {"w2": slice(None)}
    return {"w1": slice(0, d_ff), "w3": slice(d_ff, None)}


def _parameter(
    name: str, own: Mapping[str, np.ndarray], c: ModelConfig
) -> tuple[str, np.ndarray, np.ndarray]:
    """Which parameter it is, A [E, R, in] and B [out, R, E]."""
    shapes = {part: x.shape for part, x in own.items()}
    a, b = own.get("lora_A"), own.get("lora_B")
    pair = (
        (a.shape[1], b.shape[0])
        if own.keys() == {"lora_A", "lora_B"} and a.ndim == b.ndim == 2
        else ()
    )
    parameter = {(c.d_model, 2 * c.d_ff): "gate_up_proj", (c.d_ff, c.d_model): "down_proj"}.get(
        pair
    )
    if parameter is None or len(a) % c.experts or b.shape[1] != len(a):
        raise ValueError(
            f"{name} has {shapes}, which is not lora_A and lora_B of {c.experts} experts"
        )
    return parameter, a.reshape(c.experts, -1, a.shape[1]), b.reshape(len(b), -1, c.experts)
