"""Updates of a weight [out, in] that are products of another form than LoRA's.

LoHa  s (A1 B1) * (A2 B2)    element by element, arXiv:2108.06098, section 2.2
LoKr  s C kron (A B)         or of a whole second factor, arXiv:2309.14859, section 2.3
"""

from collections.abc import Mapping

import numpy as np

Parts = Mapping[str, np.ndarray]


def loha(w: np.ndarray, parts: Parts, scale: float) -> np.ndarray:
    """The weight [out, in] with LoHa's update: hada_w1_a and hada_w2_a [out, R], hada_w1_b and
    hada_w2_b [R, in]."""
    pairs = [(f"hada_w{n}_a", f"hada_w{n}_b") for n in (1, 2)]
    _check({name for pair in pairs for name in pair}, parts)
    first, second = (parts[a] @ parts[b] for a, b in pairs)
    return w + np.float32(scale) * _fitting(first * second, w)


def lokr(w: np.ndarray, parts: Parts, scale: float) -> np.ndarray:
    """The weight [out, in] with LoKr's update, each factor whole (lokr_w1) or a product (lokr_w1_a
    lokr_w1_b)."""
    return w + np.float32(scale) * _fitting(
        np.kron(_factor("lokr_w1", parts), _factor("lokr_w2", parts)), w
    )


def _factor(name: str, parts: Parts) -> np.ndarray:
    if name in parts:
        return parts[name]
    _check({f"{name}_a", f"{name}_b"}, parts)
    return parts[f"{name}_a"] @ parts[f"{name}_b"]


def _check(wanted: set[str], parts: Parts) -> None:
    if not wanted <= parts.keys():
        raise ValueError(f"has {', '.join(parts)}; wanted {', '.join(sorted(wanted))}")


def _fitting(update: np.ndarray, w: np.ndarray) -> np.ndarray:
    if update.shape != w.shape:
        raise ValueError(f"has an update {list(update.shape)} of a weight {list(w.shape)}")
    return update
