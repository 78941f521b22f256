"""Updates that rotate the inputs of a weight [out, in] block by block.

    OFT   W R^T          R = (I + Q)^-1 (I - Q) by block, Q = -Q^T; arXiv:2306.07280, section 3
    BOFT  diag(s) W R^T  a scale of each output beside it; arXiv:2311.06243, section 4

peft has Q of OFT as the numbers above its diagonal and, unless `use_cayley_neumann` is false, the
first terms of the inverse's series.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

Parts = Mapping[str, np.ndarray]


def oft(w: np.ndarray, parts: Parts, fields: Mapping[str, Any]) -> np.ndarray:
    """The weight [out, in] after OFT's rotation, oft_R [blocks, b (b - 1) / 2], or [1, ...] for all
    blocks. `fields` are those of `research.interop.peft.kinds.ROTATION`."""
    if parts.keys() != {"oft_R"}:
        raise ValueError(f"has {', '.join(parts)}; wanted oft_R")
    # b (b - 1) / 2 numbers are above the diagonal of a block of size b.
    count = parts["oft_R"].shape[-1]
    size = round((1 + (1 + 8 * count) ** 0.5) / 2)
    rows, columns = np.triu_indices(size, 1)
    if parts["oft_R"].ndim != 2 or len(rows) != count:
        raise ValueError(f"has oft_R {list(parts['oft_R'].shape)}, which is no upper triangle")
    q = np.zeros((len(parts["oft_R"]), size, size), np.float32)
    q[:, rows, columns] = parts["oft_R"]
    q -= q.swapaxes(1, 2)
    if fields["coft"]:
        q = _near(q, fields["eps"])
    if fields["use_cayley_neumann"]:
        blocks = _series(q, fields["num_cayley_neumann_terms"])
    else:
        blocks = _cayley(q)
    if fields["block_share"]:
        blocks = np.repeat(blocks, w.shape[1] // size, axis=0)
    return _rotated(w, blocks)


def boft(w: np.ndarray, parts: Parts) -> np.ndarray:
    """The weight [out, in] after BOFT's rotation and scale: boft_R [1, blocks, b, b] and boft_s
    [out, 1]. ValueError for more than one butterfly factor."""
    if parts.keys() != {"boft_R", "boft_s"}:
        raise ValueError(f"has {', '.join(parts)}; wanted boft_R and boft_s")
    if parts["boft_R"].ndim != 4 or len(parts["boft_R"]) != 1:
        raise ValueError(
            f"has boft_R {list(parts['boft_R'].shape)}, several butterfly factors, which are not "
            "supported; merge the adapter with peft"
        )
    r = parts["boft_R"][0]
    return _rotated(w, _cayley((r - r.swapaxes(1, 2)) / 2)) * parts["boft_s"]


def _near(q: np.ndarray, eps: float) -> np.ndarray:
    """COFT: a block whose norm is over eps / sqrt(blocks) is shortened to that."""
    bound = np.float32(eps) / np.sqrt(np.float32(len(q)))
    norms = np.sqrt((q * q).sum((1, 2), keepdims=True))
    return np.where(norms <= bound, q, bound * q / np.maximum(norms, np.finfo(np.float32).tiny))


def _cayley(q: np.ndarray) -> np.ndarray:
    one = np.eye(q.shape[1], dtype=np.float32)
    # X (I + Q) = I - Q, and both sides commute.
    return np.linalg.solve(one + q, one - q)


def _series(q: np.ndarray, terms: int) -> np.ndarray:
    """I + 2 Q + ... + 2 Q^(terms - 2) + Q^(terms - 1), with the sign of Q that peft has here; of 3
    terms it computes 4."""
    last = max(terms - 1, 3) if terms > 2 else terms - 1
    power = np.broadcast_to(np.eye(q.shape[1], dtype=np.float32), q.shape)
    total = power.copy()
    for exponent in range(1, last + 1):
        power = power @ q
        total += power if exponent == last > 1 else 2 * power
    return total


def _rotated(w: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """W times the transpose of a block-diagonal matrix."""
    count, size = blocks.shape[:2]
    if count * size != w.shape[1]:
        raise ValueError(f"has {count} blocks of {size} for a weight {list(w.shape)}")
    inputs = w.reshape(len(w), count, size)
    return np.einsum("onc,nkc->onk", inputs, blocks).reshape(w.shape)
