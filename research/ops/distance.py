"""Offsets of attention scores that depend on the distance from query to key alone.

A row of T queries and S keys has T + S - 1 distances, and so many offsets for each head hold what
an array of T x S would. The offsets of any block of queries and keys are a slice of them, shifted
by one from query to query, and their gradient is a sum over each diagonal: neither needs a look-up,
a scatter or a one-hot for each pair. By the compilers' count of memory; nothing was timed.

Letters: N query heads, W distances, t queries and s keys of a block.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from research.parallel.placement import merge_axes, split_axis


@partial(jax.tree_util.register_dataclass, data_fields=["values_NW"], meta_fields=["queries"])
@dataclass(frozen=True)
class DistanceBias:
    """Offsets `values_NW` float32 [N, W]; that of query i and key j, both counted in their rows, is
    entry j - i + `queries` - 1. W is `queries` plus the number of keys, less one."""

    values_NW: jax.Array
    queries: int

    def filled(self, added: int) -> "DistanceBias":
        """The same with `added` queries behind the last one, whose offsets are 0."""
        values_NW = jnp.pad(self.values_NW, ((0, 0), (added, 0)))
        return DistanceBias(values_NW, self.queries + added)

    def block(self, first: jax.Array | int, count: int, keys: slice) -> jax.Array:
        """The offsets [1, N, t, s] of `count` queries from `first` on, which may be traced, and of
        these keys."""
        size = keys.stop - keys.start
        # The last of these queries and the first key are the farthest apart.
        start = self.queries - count + keys.start - first
        near_NW = jax.lax.dynamic_slice_in_dim(self.values_NW, start, count + size - 1, axis=1)
        return _shifted(near_NW, count)[None]

    def dense(self) -> jax.Array:
        """All offsets, [1, N, T, S]."""
        keys = self.values_NW.shape[1] - self.queries + 1
        return self.block(0, self.queries, slice(0, keys))


def _shifted(values_NW: jax.Array, rows: int) -> jax.Array:
    """[N, t, s] whose entry (n, i, j) is `values_NW[n, j - i + t - 1]`, for t = `rows`."""
    width = values_NW.shape[1]
    # Rows of W + 1 numbers, read as rows of W: each begins one number earlier than the one before.
    filled = jnp.pad(values_NW, ((0, 0), (0, 1)))[:, None, :]
    copies = jnp.broadcast_to(filled, (filled.shape[0], rows, width + 1))
    flat = merge_axes(copies, 1)[:, : rows * width]
    return split_axis(flat, 1, rows)[:, :, rows - 1 :]
