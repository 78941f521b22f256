"""What of all pairs of queries and keys an attention kernel multiplies, told to whoever counts its
work.

JAX's attention kernels give no cost estimate and skip the blocks that a mask hides. The name of the
scope that they are called in says how much is left, and a scope's name follows the equations into
the backward pass.
"""

import re
from contextlib import AbstractContextManager

import jax
import numpy as np

_SCOPE = re.compile(r"pairs\[([^\]]*)\]")


def visited(T: int, S: int, block_q: int, block_k: int, *, causal: bool, window: int = 0) -> float:
    """The share of T queries times S keys that lies in blocks with at least one visible pair;
    blocks divide the lengths."""
    first_query = np.arange(0, T, block_q)
    last_block = (first_query + block_q - 1) // block_k if causal else S // block_k - 1
    first_block = np.maximum((first_query + 1 - window) // block_k, 0) if window else 0
    blocks = np.minimum(last_block, S // block_k - 1) - first_block + 1
    return float(np.mean(np.broadcast_to(blocks, first_query.shape))) * block_k / S


def scope(**shares: float) -> AbstractContextManager:
    """The scope of a call whose kernels, by a word of their names, multiply these shares of all
    pairs."""
    return jax.named_scope(
        "pairs[" + ",".join(f"{word}={share!r}" for word, share in shares.items()) + "]"
    )


def shares(scopes: str) -> dict[str, float]:
    """What the innermost `scope` among the names of scopes says; empty where there is none."""
    found = _SCOPE.findall(scopes)
    return (
        {
            word: float(share)
            for word, _, share in (part.partition("=") for part in found[-1].split(","))
        }
        if found
        else {}
    )
