"""The tokens of a batch in chunks, for heads that never have the logits of all of them.

Letters: B batch, T time, C tokens of a chunk, D model.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.parallel.placement import mesh_axes

# Tokens of a device whose logits exist at a time unless a run chooses: enough to keep its matrix
# units busy.
CHUNK = 512


def in_chunks(
    states_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array, most: int = 0
) -> tuple[jax.Array, ...]:
    """All tokens in n chunks of C: [n, C, D], [n, C] and [n, C]; C is at most `most`, CHUNK for 0.
    The last chunk is padded with tokens of weight 0 where C does not divide their number."""
    D = states_BTD.shape[-1]
    rows = states_BTD.size // D
    most = min(most or CHUNK, rows)
    # An even division saves the copy of padding, unless its chunks would be tiny.
    best = max(n for n in range(1, most + 1) if rows % n == 0)
    size = best if 4 * best >= most else most
    added = -rows % size
    flat = states_BTD.reshape(rows, D), targets_BT.reshape(rows), weights_BT.reshape(rows)
    filled = (jnp.pad(x, [(0, added)] + [(0, 0)] * (x.ndim - 1)) if added else x for x in flat)
    return tuple(x.reshape(-1, size, *x.shape[1:]) for x in filled)


def token_mesh_axes(tokens: PartitionSpec) -> tuple[str, ...]:
    """Names of the mesh axes that split the tokens [B, T] of a batch, by their PartitionSpec."""
    return tuple(name for entry in tokens for name in mesh_axes(entry))
