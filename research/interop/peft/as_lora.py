"""Adapters of other kinds that are a product of two thin matrices, as LoRA's: they train on and are
written as LoRA.

    AdaLoRA  s B (e * A) / (initial rank + 1e-5)    arXiv:2303.10512, equation 3, as peft scales it
    VeRA     (b * B) (d * A), A and B for all       arXiv:2310.11454, equation 2

Scales e [R, 1], d [R] are of A's rows, b [out] of B's.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from research.interop.peft.config import PeftConfig
from research.interop.peft.experts import Parts
from research.interop.peft.kinds import ADALORA, LORA, VERA
from research.interop.peft.tensors import Found
from research.interop.storage.layout import letter_sizes, source_shape
from research.interop.storage.modules import Module
from research.models.config import ModelConfig

# AdaLoRA's division as peft has it, which would otherwise divide by a rank of 0.
_EPSILON = 1e-5
# peft has VeRA's pair once, beside the model's modules.
_SHARED = ("base_model.vera_A", "base_model.vera_B")


def as_lora(found: Found, known: Mapping[str, Module], c: ModelConfig) -> Found:
    """What was found on the `known` modules of a model, as LoRA if it is of one of these kinds.
    ValueError for tensors that the kind has not, and for VeRA without its matrices, which a seed of
    torch's alone could give back."""
    config = found.config
    if config.kind == ADALORA:
        parts = {
            name: {"lora_A": part["lora_A"] * part["lora_E"], "lora_B": part["lora_B"]}
            for name, part in _whole(found, ("lora_A", "lora_B", "lora_E")).items()
            if len(part["lora_A"])  # a module may have lost all of its ranks
        }
        alpha = config.alpha if config.alpha > 0 else config.rank
        scales = dict.fromkeys(parts, alpha / (config.rank + _EPSILON))
    elif config.kind == VERA:
        a, b = _shared(found)
        parts = {
            name: _of_vera(a[:, : _inputs(known[name], c)], b, part)
            for name, part in _whole(found, ("vera_lambda_b", "vera_lambda_d")).items()
        }
        scales = dict.fromkeys(parts, 1.0)
    else:
        return found
    logging.warning(
        "%s is read as low-rank adapters of %d modules, which train on and are written as LoRA",
        config.kind,
        len(parts),
    )
    whole = {name: actual for name, actual in found.whole.items() if not _is_shared(actual)}
    return replace(found, config=_config(config, parts, scales), parts=parts, whole=whole)


def _whole(found: Found, wanted: tuple[str, ...]) -> Parts:
    for name, part in found.parts.items():
        if not set(wanted) <= part.keys():
            raise ValueError(f"{name} has {', '.join(part)}; wanted {', '.join(wanted)}")
    return found.parts


def _is_shared(actual: str) -> bool:
    return actual.startswith(_SHARED)


def _shared(found: Found) -> tuple[np.ndarray, np.ndarray]:
    """VeRA's A [R, longest inputs] and B [longest outputs, R]."""
    pair = [
        found.tensors.read(actual).astype(np.float32)
        for actual in sorted(found.whole.values())
        if _is_shared(actual)
    ]
    if len(pair) != 2:
        raise ValueError(
            "it has no vera_A and vera_B, which only peft's random numbers give back; save it "
            "again with save_projection=True"
        )
    return pair[0], pair[1]


def _of_vera(a: np.ndarray, b: np.ndarray, part: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A module's pair, of A [R, in] and B [longest outputs, R]."""
    of_rows, of_ranks = part["vera_lambda_b"], part["vera_lambda_d"]
    if of_ranks.shape != a.shape[:1] or len(of_rows) > len(b):
        raise ValueError(
            f"vera_lambda_d {list(of_ranks.shape)} and vera_lambda_b {list(of_rows.shape)} do not "
            f"fit vera_A {list(a.shape)} and vera_B {list(b.shape)}"
        )
    return {"lora_A": of_ranks[:, None] * a, "lora_B": of_rows[:, None] * b[: len(of_rows)]}


def _inputs(module: Module, c: ModelConfig) -> int:
    return source_shape(module.a, letter_sizes(c) | {"R": 1})[1]


def _config(config: PeftConfig, parts: Parts, scales: Mapping[str, float]) -> PeftConfig:
    """The config of a LoRA with these tensors and scales."""
    ranks = {re.escape(name): len(part["lora_A"]) for name, part in parts.items()}
    alphas = {re.escape(name): len(part["lora_A"]) * scales[name] for name, part in parts.items()}
    return replace(config, kind=LORA, ranks=ranks, alphas=alphas)
