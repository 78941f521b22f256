"""One step: a flat row of tokens of many texts goes through the model, and each text gets its next
token.

Letters: T tokens of the row, R texts, C pages of a text, D model, M rows whose next token is drawn,
S tokens of a text, V vocabulary.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from research.models.adapters import virtual_tokens
from research.models.config import Execution
from research.models.latent import cached_size
from research.models.model import Model
from research.models.paged import PagedCache, make_pool
from research.models.rounded import make_rounded
from research.parallel.placement import gather_axis
from research.serve.draw import Draws, Guess, Told, next_tokens, tell
from research.serve.shapes import Shape
from research.tree import Tree
from research.tuning.adapter_bank import select

_BLOCK = 64  # tokens that are read whose logits exist at a time: 64 x 262,144 floats are 64 MiB


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["inputs_T", "positions_T", "segments_T", "table_RC", "slot_R", "last_M"]
    + ["texts_MS", "draws", "follows_T", "adapters_T", "soft_TD", "soft_at_T", "spans_T2"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Row:
    """The tokens of a step, on the host; `shape` says how many there are of what.

    inputs_T     tokens: of each text that goes on the last one and those that are guessed behind
                 it, then those of the texts that are read, equally many of each
    positions_T  their positions, and in `segments_T` 1, 0 for padding
    table_RC     pages of each text, and in `slot_R` which of the texts that run it is
    last_M       where the tokens are in the row whose next one is drawn
    texts_MS     all tokens of its text up to each of these, -1 behind them
    draws        how its next token is drawn
    follows_T    the token after each, where that is known
    adapters_T   the adapter of each token's text in the model's bank, -1 for none
    soft_TD      the vectors of an encoder in the places of a medium, zeros elsewhere, and in
                 `soft_at_T` the number of such a place, -1 elsewhere; None in the rows of a model
                 without an encoder
    spans_T2     the first and the last place in its text of the block that each token is in; None
                 in the rows of a model without blocks
    """

    inputs_T: np.ndarray
    positions_T: np.ndarray
    segments_T: np.ndarray
    table_RC: np.ndarray
    slot_R: np.ndarray
    last_M: np.ndarray
    texts_MS: np.ndarray
    draws: Draws
    follows_T: np.ndarray
    adapters_T: np.ndarray
    soft_TD: np.ndarray | None = None
    soft_at_T: np.ndarray | None = None
    spans_T2: np.ndarray | None = None


def make_pools(
    model: Model, pages: int, page_size: int, slots: int = 0, bits: int | None = None
) -> PagedCache:
    """Empty pages for the keys and values of a model's layers, in the type of computation or in a
    number of bits; these want to know how many texts run at most."""
    c, dtype = model.config, model.precision.compute_dtype
    heads, size = (1, cached_size(c)) if c.kv_latent else (c.kv_heads, c.head_size)
    sizes = c.layers, pages, page_size, heads, size, dtype
    if bits is not None:
        how = {"slots": slots, "bits": bits, "values": not c.kv_latent}
        return make_rounded(*sizes, **how, rules=model.rules)
    make = partial(make_pool, *sizes, model.rules)
    return PagedCache(make(), None if c.kv_latent else make(), jnp.zeros((0, 0), jnp.int32))


@partial(jax.jit, static_argnames=("model", "shape"), donate_argnames="pools")
def step(
    params: Tree,
    pools: PagedCache,
    row: Row,
    guess: Guess | None = None,
    *,
    model: Model,
    shape: Shape,
) -> tuple[PagedCache, Told, Told | None]:
    """(the pools with the keys and values of the row's tokens, what is drawn, and of a `scored`
    shape what follows each token that is read). A `guess` is that of a draft model."""
    # The pools are a tuple of layers, which a loop over layers could not index.
    model = replace(model, execution=replace(Execution(), unroll=0))
    how = {"singles": shape.singles, "first": virtual_tokens(params), "each": shape.each}
    cache = pools.of(row.table_RC, row.slot_R, **how)
    batch = {name: getattr(row, f"{name}_T")[None] for name in ("inputs", "positions", "segments")}
    if row.soft_TD is not None:
        batch |= {"soft": row.soft_TD[None], "soft_at": row.soft_at_T[None]}
    if row.spans_T2 is not None:
        batch["spans"] = row.spans_T2[None]
    hidden_1TD, cache = model.decode(select(params, row.adapters_T[None]), batch, cache)
    head = select(params, row.adapters_T[row.last_M][None])
    # A draw compares a row's logits with each other, so the vocabulary is gathered.
    logits_MV = gather_axis(model.logits(head, hidden_1TD[:, row.last_M])[0], axis=1)
    told = next_tokens(logits_MV, row.draws, row.texts_MS, guess)
    scores = _scores(params, hidden_1TD[0], row, model, shape) if shape.scored else None
    return cache.bare(), told, scores


def _scores(params: Tree, hidden_TD: jax.Array, row: Row, model: Model, shape: Shape) -> Told:
    """What follows each token that is read, with its log-probability, a block at a time."""
    told = []
    for first in range(shape.unread, shape.tokens, _BLOCK):
        block = slice(first, first + _BLOCK)
        head = select(params, row.adapters_T[None, block])
        logits_tV = gather_axis(model.logits(head, hidden_TD[None, block])[0], axis=1)
        told.append(tell(logits_tV, row.follows_T[block], row.draws.top))
    return jax.tree.map(lambda *blocks: jnp.concatenate(blocks), *told)
