"""Which type each tensor of a file is stored in. The mixtures of llama.cpp, such as Q4_K_M, give
some tensors more bits, as its src/llama-quant.cpp chooses them without an importance matrix
(`llama_tensor_get_type`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from research.interop.gguf.k_quants import BLOCK
from research.models.config import ModelConfig


@dataclass(frozen=True)
class Mixture:
    """The type of most matrices, and the number in `general.file_type` (enum llama_ftype)."""

    kind: str
    file_type: int


MIXTURES = {
    "Q2_K": Mixture("Q2_K", 10),
    "Q3_K_S": Mixture("Q3_K", 11),
    "Q3_K_M": Mixture("Q3_K", 12),
    "Q3_K_L": Mixture("Q3_K", 13),
    "Q4_K_S": Mixture("Q4_K", 14),
    "Q4_K_M": Mixture("Q4_K", 15),
    "Q5_K_S": Mixture("Q5_K", 16),
    "Q5_K_M": Mixture("Q5_K", 17),
    "Q6_K": Mixture("Q6_K", 18),
}
# Experts in MXFP4 and all other matrices in Q8_0 (LLAMA_FTYPE_MOSTLY_MXFP4_MOE).
OF_EXPERTS = "MXFP4"
# general.file_type of one type for all matrices. These numbers are other ones than the types' own.
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32, "MXFP4": 38} | {
    name: mixture.file_type for name, mixture in MIXTURES.items()
}
# What a row that is no multiple of 256 is stored in.
_SHORT = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_SHORT_BLOCK = 32  # elements of a block of these
# llama.cpp keeps these in float32: they are small, and it adds some of them as they are.
_FULL = ("ffn_gate_inp", "position_embd", "token_types", "attn_rel_b")


def tensor_type(name: str, shape: Sequence[int], kind: str, c: ModelConfig, arch: str) -> str:
    """The type of one tensor under the name `arch` of the model `c`, where matrices are to be
    `kind`: a type, or the name of a mixture."""
    # Biases of experts have two axes.
    if len(shape) == 1 or name.endswith(".bias") or any(part in name for part in _FULL):
        return "F32"
    if kind == OF_EXPERTS:
        return _fitting("MXFP4" if name.endswith("_exps.weight") else "Q8_0", shape[-1])
    if kind in MIXTURES:
        return _fitting(_mixed(name, shape, kind, c, arch), shape[-1])
    if kind.startswith("Q") and shape[-1] % _SHORT_BLOCK:
        return "F16"
    if name in ("token_embd.weight", "output.weight") and kind.startswith("Q4"):
        return "Q8_0"  # logits suffer most; llama.cpp takes more bits for them too
    return kind


def _fitting(kind: str, row: int) -> str:
    """The type, or one with smaller blocks that divide a row."""
    if kind in _SHORT and row % BLOCK:
        kind = _SHORT[kind]
    return "F16" if row % _SHORT_BLOCK else kind


def _mixed(name: str, shape: Sequence[int], mix: str, c: ModelConfig, arch: str) -> str:
    usual = MIXTURES[mix].kind
    if name == "output.weight" or (c.tied and name == "token_embd.weight"):
        return "Q8_0" if shape[-1] % BLOCK else "Q6_K"
    if not name.startswith("blk."):
        return usual
    layer = int(name.split(".")[1])
    if any(f"{part}.weight" in name for part in ("attn_v", "attn_qkv", "attn_kv_b")):
        return _value_type(mix, layer, c, arch)
    if "ffn_down" in name:
        return _down_type(mix, layer, c.layers)
    if "attn_output.weight" in name:
        return _output_type(mix, c)
    return "Q8_0" if "attn_k.weight" in name and c.experts == 8 else usual


def _more_bits(layer: int, layers: int) -> bool:
    """True for the first and last eighth of the layers, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _value_type(mix: str, layer: int, c: ModelConfig, arch: str) -> str:
    usual, shared = MIXTURES[mix].kind, c.heads // c.kv_heads
    if c.experts == 8:  # little beside the experts
        return "Q8_0"
    if mix == "Q2_K":
        usual = "Q4_K" if shared >= 4 else "Q3_K"
    elif mix == "Q3_K_M":
        usual = "Q5_K" if layer < 2 else "Q4_K"
    elif mix == "Q3_K_L" or (mix == "Q4_K_S" and layer < 4):
        usual = "Q5_K"
    elif mix in ("Q4_K_M", "Q5_K_M") and _more_bits(layer, c.layers):
        usual = "Q6_K"
    # What llama.cpp calls 70B, where a value has a head for eight queries.
    large = c.layers == 80 and (arch == "qwen2" or (arch == "llama" and shared > 1))
    return "Q5_K" if large and usual in ("Q3_K", "Q4_K") else usual


def _down_type(mix: str, layer: int, layers: int) -> str:
    usual = MIXTURES[mix].kind
    if mix == "Q2_K":
        return "Q3_K"
    if mix == "Q3_K_M":
        return "Q5_K" if layer < layers // 16 else "Q4_K"
    if mix == "Q3_K_L" or (mix == "Q4_K_S" and layer < layers // 8):
        return "Q5_K"
    return "Q6_K" if mix in ("Q4_K_M", "Q5_K_M") and _more_bits(layer, layers) else usual


def _output_type(mix: str, c: ModelConfig) -> str:
    usual = MIXTURES[mix].kind
    if c.experts == 8:
        return "Q5_K" if usual in ("Q2_K", "Q3_K", "Q4_K") and mix != "Q3_K_L" else usual
    return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(mix, usual)
