"""The share of query-key pairs that an attention kernel multiplies, for counting its FLOPs.

JAX's attention kernels report no cost and skip blocks that the mask hides. The share is therefore
written into the name of the scope in which a kernel is called; names of scopes also appear on the
operations of the backward pass.
"""

import re
from contextlib import AbstractContextManager

import jax
import numpy as np

# Brackets mark the end also where JAX wraps the name, as in transpose(jvp(pairs[...])).
_SCOPE = re.compile(r"pairs\[([^\]]*)\]")


def visited(T: int, S: int, block_q: int, block_k: int, *, causal: bool, window: int = 0) -> float:
    """The share of T queries times S keys that lies in blocks with at least one visible pair;
    blocks divide the lengths."""
    # Row by row of blocks: the range of key blocks from the first to the last that is not hidden.
    first_query = np.arange(0, T, block_q)
    # How far behind itself a query sees.
    reach = 0 if causal else (window or S + 1) - 1
    last_block = (first_query + block_q - 1 + reach) // block_k
    first_block = np.maximum((first_query + 1 - window) // block_k, 0) if window else 0
    blocks = np.minimum(last_block, S // block_k - 1) - first_block + 1
    # Mean number of visited key blocks of a row of query blocks, over all S / block_k of them.
    return float(np.mean(np.broadcast_to(blocks, first_query.shape))) * block_k / S


def scope(**shares: float) -> AbstractContextManager:
    """A named scope for a call of kernels: each keyword is a word in the name of some of them, its
    value the share of all pairs that they multiply."""
    return jax.named_scope(
        "pairs[" + ",".join(f"{word}={share!r}" for word, share in shares.items()) + "]"
    )


def shares(scopes: str) -> dict[str, float]:
    """The shares given to every `scope` in a path of scope names, of a word that several give that
    of the innermost; {} without one."""
    told = {}
    for match in _SCOPE.findall(scopes):
        for part in match.split(","):
            word, _, share = part.partition("=")
            told[word] = float(share)
    return told
