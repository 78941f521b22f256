"""Scaling of rotary positions in a GGUF file's metadata: linear, YaRN, and the numbers of LongRoPE
beside its factors, which are tensors (`rope_factors`).
"""

import json
import math
from dataclasses import asdict
from typing import Any

from research.interop.gguf.architecture import Metadata, shortest
from research.models.config import ModelConfig
from research.ops.rope_scaling import RopeScaling

LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
# A key of ours with all fields of a scaling as JSON, which llama.cpp ignores: it keeps them exactly
# where the file has float32, and a factor that it has multiplied with another.
RECORD = "graft.rope.scaling.json"
# Whose scores are multiplied by a factor that the logarithmic multiplier says, which llama.cpp's
# script writes there as a tenth of `RopeScaling.score_scale`.
_SCALES_SCORES = ("deepseek2",)
# Published models of these do not round YaRN's ramp to whole pairs, as llama.cpp does of all.
_UNROUNDED = ("gpt-oss",)


def read_keys(m: Metadata) -> RopeScaling:
    """The scaling that the metadata says. LongRoPE, whose factors are tensors, comes back as the
    kind with a factor for no pair, see `rope_factors`; Llama 3's as none.

    As llama.cpp reads them: without a type a factor is linear, "rope.scale_linear" is an older name
    of the factor, and 0 or the type "none" is no scaling. ValueError for any other kind.
    """
    kind = m.values.get(f"{m.kind}.rope.scaling.type") or "linear"
    factor = m.number("rope.scaling.factor", m.number("rope.scale_linear", 0.0))
    attention = m.number("rope.scaling.attn_factor", 1.0)
    if kind == "yarn":
        return _read_yarn(m, shortest(factor), attention)
    # Phi 3's files name no type, and have a factor on rotated queries and keys beside the tensors.
    if attention != 1.0 and LONG not in m.tensors:
        raise ValueError(
            f"the metadata has {m.kind}.rope.scaling.attn_factor={attention}; only 1.0 is "
            f"supported beside {kind} scaling"
        )
    if kind in ("none", "longrope") or LONG in m.tensors or (kind == "linear" and not factor):
        return RopeScaling()
    if kind != "linear":
        raise ValueError(
            f"rotary scaling {kind!r} is not supported, only linear, yarn, longrope and Llama 3's"
        )
    return RopeScaling() if factor == 1 else RopeScaling(factor=shortest(factor), kind="linear")


def _read_yarn(m: Metadata, factor: float, attention: float) -> RopeScaling:
    if factor in (0.0, 1.0):
        return RopeScaling()
    derived = 0.1 * math.log(factor) + 1.0
    log, scores = m.number("rope.scaling.yarn_log_multiplier", 0.0), 0.0
    if m.kind in _SCALES_SCORES:
        scores, attention = _read_score_scale(m, log, attention), 1.0 / derived
    elif log:
        # The paper's factor is divided by one with this number on its logarithm (Ministral 3).
        attention /= 0.1 * log * math.log(factor) + 1.0
    scaling = RopeScaling(
        factor=factor,
        original_length=m.number(
            "rope.scaling.original_context_length", m.number("context_length")
        ),
        beta_fast=shortest(m.number("rope.scaling.yarn_beta_fast", 32.0)),
        beta_slow=shortest(m.number("rope.scaling.yarn_beta_slow", 1.0)),
        # llama.cpp multiplies the factor of the file with the paper's.
        attention_factor=0.0 if attention == 1.0 else shortest(attention * derived),
        truncate=m.kind not in _UNROUNDED,
        score_scale=scores,
        kind="yarn",
    )
    return said(m, scaling)


def _read_score_scale(m: Metadata, log: float, attention: float) -> float:
    """`RopeScaling.score_scale` of an architecture that has one, by its multiplier. ValueError for
    files whose scores llama.cpp multiplies by more than that."""
    if not log or attention != 1.0:
        raise ValueError(
            f"the metadata has {m.kind}.rope.scaling.yarn_log_multiplier={log} and attn_factor="
            f"{attention}; only a positive one beside 1.0 is supported"
        )
    return shortest(shortest(log) / 0.1)


def said(m: Metadata, scaling: RopeScaling) -> RopeScaling:
    """The scaling of the key `RECORD`, if it amounts to the one that the file's other keys give."""
    text = m.values.get(RECORD)
    if not isinstance(text, str):
        return scaling
    exact = RopeScaling(**json.loads(text))
    same = _keys(exact, m.kind).items() == _keys(scaling, m.kind).items()
    return exact if same and exact.kind == scaling.kind else scaling


def write_keys(c: ModelConfig, kind: str) -> dict[str, Any]:
    """The metadata of a model's scaling under the architecture `kind`, {} for none and for Llama
    3's. ValueError for a scaling that llama.cpp does not have."""
    scaling = c.rope_scaling
    if scaling.kind == "dynamic":
        raise ValueError("GGUF has no dynamic scaling of rotary positions; use --to=hf")
    if scaling.kind == "yarn" and not scaling.truncate and kind not in _UNROUNDED:
        raise ValueError(
            "llama.cpp rounds YaRN's ramp to whole pairs, and model.rope_scaling.truncate=False "
            "does not; use --to=hf"
        )
    if scaling.score_multiplier != 1.0 and kind not in _SCALES_SCORES:
        raise ValueError(
            f"GGUF's {kind} architecture has no model.rope_scaling.score_scale="
            f"{scaling.score_scale}; use --to=hf"
        )
    keys = {f"{kind}.rope.scaling.{name}": value for name, value in _keys(scaling, kind).items()}
    exact = scaling.kind in ("yarn", "longrope")
    return {**keys, RECORD: json.dumps(asdict(scaling))} if exact else keys


def _keys(scaling: RopeScaling, kind: str) -> dict[str, Any]:
    """The keys below "KIND.rope.scaling" of a scaling, with numbers as float32 has them."""
    values: dict[str, Any] = {}
    if scaling.kind == "linear":
        values = {"type": "linear", "factor": scaling.factor}
    if scaling.kind == "yarn":
        values = {
            "type": "yarn",
            "factor": scaling.factor,
            "original_context_length": int(scaling.original_length),
            "yarn_beta_fast": scaling.beta_fast,
            "yarn_beta_slow": scaling.beta_slow,
        }
        if kind in _SCALES_SCORES:
            values["yarn_log_multiplier"] = 0.1 * scaling.score_scale
        elif scaling.attention_factor:
            derived = 0.1 * math.log(scaling.factor) + 1.0
            values["attn_factor"] = scaling.attention_factor / derived
    if scaling.kind == "longrope":
        values = {
            "type": "longrope",
            "original_context_length": int(scaling.original_length),
            "attn_factor": scaling.multiplier,
        }
    return {k: shortest(v) if isinstance(v, float) else v for k, v in values.items()}


def notes(c: ModelConfig) -> list[str]:
    """A line on what llama.cpp computes of a scaling in another way."""
    scaling = c.rope_scaling
    if scaling.kind == "yarn" and (scaling.beta_fast, scaling.beta_slow) != (32.0, 1.0):
        return [
            "llama.cpp takes YaRN's bounds as 32 and 1 turns whatever the file says, and this "
            f"model has beta_fast={scaling.beta_fast} and beta_slow={scaling.beta_slow}"
        ]
    if scaling.kind != "longrope":
        return []
    return [
        "llama.cpp takes LongRoPE's long factors for every text where its context (-c) is over "
        f"{scaling.original_length:,} tokens, and the short ones for every text else"
    ]
