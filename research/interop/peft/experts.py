"""Adapters on stacked experts, taken apart into adapters of single experts: transformers 5 has all
experts of a layer in two parameters.

peft wraps such a module once for each parameter, so a tensor's name tells the order of wrapping and
not the parameter. The shape tells it:

    gate_up_proj  [E, 2 F, D]   lora_A [E R, D], lora_B [2 F, R E]   of gate and up, one A for both
    down_proj     [E, D, F]     lora_A [E R, F], lora_B [D, R E]     of down
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from research.interop.storage.family import Family
from research.models.config import ModelConfig

Parts = dict[str, dict[str, np.ndarray]]
# `.base_layer` is in the name of the parameter that was wrapped first: peft wraps the wrapper.
_MODULE = r"(.*)\.(?:mlp|block_sparse_moe)\.experts(?:\.base_layer)?"


def experts_apart(parts: Parts, c: ModelConfig, family: Family) -> tuple[Parts, dict[str, str]]:
    """(tensors by module, names): `parts` with stacked experts split into a module for each expert,
    and for each of these the name that peft matches with rank and alpha patterns. ValueError for
    tensors that are not lora_A and lora_B of a stacked parameter."""
    by_module: Parts = {}
    names: dict[str, str] = {}
    # "block_sparse_moe.experts.{expert}.w1" for the gate of Mixtral's.
    ends = {
        rule.path: rule.name.split("{layer}.")[1].removesuffix(".weight")
        for rule in family.rules(c)
        if "{expert}" in rule.name
    }
    for name, tensors in parts.items():
        match = re.fullmatch(_MODULE, name) if c.experts else None
        if match is None:
            by_module[name] = tensors
            continue
        parameter, a, b = _parameter(name, tensors, c)
        for expert in range(c.experts):
            for role, rows in _roles(parameter, c.d_ff).items():
                module = f"{match[1]}.{ends[f'layers/mlp/{role}'].format(expert=expert)}"
                by_module[module] = {
                    "lora_A": a[expert],
                    "lora_B": np.ascontiguousarray(b[rows, :, expert]),
                }
                # Rank and alpha patterns are written for peft's module and not for the expert
                # made from it.
                names[module] = f"{match[1]}.mlp.experts.{parameter}"
    return by_module, names


def refuse_single(targets: Iterable[str]) -> None:
    """ValueError for modules to adapt that are single experts, by their whole names: peft knows
    experts by the ends of names alone, for all experts and a shared one at once, and would pass
    over these without a word."""
    single = next((target for target in targets if re.search(r"\.experts\.\d+\.", target)), None)
    if single is not None:
        raise ValueError(
            f"peft adapts all experts of a model alike, a shared one too, and not {single} alone; "
            "convert the run with --to=hf, which merges the adapters"
        )


def _roles(parameter: str, d_ff: int) -> dict[str, slice]:
    # gate_up_proj stacks gate over up along its outputs, so a slice of lora_B belongs to
    # one of them; they share lora_A.
    if parameter == "down_proj":
        return {"down": slice(None)}
    return {"gate": slice(0, d_ff), "up": slice(d_ff, None)}


def _parameter(
    name: str, tensors: Mapping[str, np.ndarray], c: ModelConfig
) -> tuple[str, np.ndarray, np.ndarray]:
    """(name of the parameter, A [E, R, in], B [out, R, E])."""
    shapes = {part: x.shape for part, x in tensors.items()}
    a, b = tensors.get("lora_A"), tensors.get("lora_B")
    pair = (
        (a.shape[1], b.shape[0])
        if tensors.keys() == {"lora_A", "lora_B"} and a.ndim == b.ndim == 2
        else ()
    )
    # The pair (inputs, outputs) differs between the two, also where d_ff equals d_model.
    parameter = {(c.d_model, 2 * c.d_ff): "gate_up_proj", (c.d_ff, c.d_model): "down_proj"}.get(
        pair
    )
    if parameter is None or len(a) % c.experts or b.shape[1] != len(a):
        raise ValueError(
            f"{name} has {shapes}, which is not lora_A and lora_B of {c.experts} experts"
        )
    # peft runs expert-major in A and rank-major in B.
    return parameter, a.reshape(c.experts, -1, a.shape[1]), b.reshape(len(b), -1, c.experts)
