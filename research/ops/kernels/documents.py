"""Where the documents of packed rows lie once the rows are joined into one: a list of a fixed size,
as kernels for documents of unequal lengths want it."""

import jax
import jax.numpy as jnp


def joined(segments_BT: jax.Array, slots: int) -> tuple[jax.Array, jax.Array]:
    """(edges [slots + 1], number of documents), int32, of the rows joined into one of B x T tokens:
    document n has the tokens from edges[n] to before edges[n + 1].

    Slots without a document lie at the end and hold no token. Padding belongs to the document
    before it in its row, or is one by itself in a row that has no other: under a causal mask no
    token of the document sees it. With more documents than slots the last slot has all the rest,
    which the number tells.
    """
    T = segments_BT.shape[1]
    begins_BT = (segments_BT != jnp.roll(segments_BT, 1, axis=1)) & (segments_BT > 0)
    # A row begins a document whatever it holds, so that none reaches over two rows.
    begins = (begins_BT | (jnp.arange(T) == 0)[None]).reshape(-1)
    (firsts,) = jnp.nonzero(begins, size=slots, fill_value=begins.size)
    edges = jnp.append(firsts, begins.size).astype(jnp.int32)
    return edges, jnp.sum(begins, dtype=jnp.int32)
