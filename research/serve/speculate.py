"""Speculative sampling with a draft model: a small model guesses tokens, the large one reads all of
them in one step and keeps what it would have written (arXiv:2211.17192, arXiv:2302.01318).

A token x that was drawn from the draft's distribution q is kept with probability min(1, p(x)/q(x)),
p being that of the model; where it is not, another is drawn from max(p - q, 0) over its sum. What
comes out is drawn from p. At temperature 0 it is the likeliest token of the model.

The draft has a pool of its own, whose pages have the numbers of the model's: one table says which
pages of both a text has, and a text that shares pages shares both.

Letters: G texts that go on, k + 1 tokens of each in a step, M = G (k + 1) rows whose next token is
drawn, S tokens of a text, V vocabulary.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from research.infer.sampling import draw, likeliest
from research.models.adapters import virtual_tokens
from research.models.config import Execution
from research.models.model import Model
from research.models.paged import PagedCache
from research.parallel.placement import gather_axis
from research.serve.draw import DRAFTED, Draws, Guess, allowed, shaped, uniform
from research.serve.penalties import penalized
from research.serve.shapes import Shape
from research.serve.step import Row
from research.tree import Tree


@partial(jax.jit, static_argnames=("model", "shape"), donate_argnames="pools")
def read(params: Tree, pools: PagedCache, row: Row, *, model: Model, shape: Shape) -> PagedCache:
    """The draft's pools with the row's tokens, of which it guesses nothing."""
    fields = {name: getattr(row, f"{name}_T") for name in ("inputs", "positions", "segments")}
    return _fed(params, pools, fields, row, model, shape)[1]


@partial(jax.jit, static_argnames=("model", "shape"), donate_argnames="pools")
def guess(
    params: Tree, pools: PagedCache, row: Row, *, model: Model, shape: Shape
) -> tuple[PagedCache, Row, Guess]:
    """(the draft's pools with each text's last token and what it guesses behind, the row with the
    guesses, and these). The row's segments say how many of them a text has room for."""
    by_text = lambda x: x.reshape(shape.singles, shape.each, *x.shape[1:])
    there_Gk = by_text(row.segments_T)
    texts_GkS, at_G = by_text(row.texts_MS), by_text(row.draws.position_M)[:, 0]
    token_G, ids, probs = by_text(row.inputs_T)[:, 0], [], []
    inputs = [token_G]
    for ahead in range(shape.each):
        fields = {
            "inputs": token_G,
            "positions": by_text(row.positions_T)[:, 0] + ahead,
            "segments": there_Gk[:, ahead],
        }
        hidden_1GD, pools = _fed(params, pools, fields, row, model, shape)
        if ahead == shape.drafts:  # read for the next step alone
            break
        draws_G = _first(row.draws, shape, ahead)
        logits_GV = gather_axis(model.logits(params, hidden_1GD)[0].astype(jnp.float32), axis=1)
        token_G, probs_GV = drafted(logits_GV, draws_G)
        inputs.append(token_G)
        probs.append(probs_GV)
        ids.append(jnp.where(there_Gk[:, ahead + 1] > 0, token_G, -1))
        # A penalty on what is there already counts the guesses, too.
        here_1kS = jnp.arange(shape.each)[None, :, None], jnp.arange(texts_GkS.shape[2])[None, None]
        said_GkS = (here_1kS[0] > ahead) & (here_1kS[1] == at_G[:, None, None] + ahead + 1)
        texts_GkS = jnp.where(said_GkS, token_G[:, None, None], texts_GkS)
    nothing_G = jnp.full_like(token_G, -1)
    guessed = Guess(
        jnp.stack([*ids, nothing_G], axis=1).reshape(-1),
        jnp.stack([*probs, jnp.zeros_like(probs[0])], axis=1).reshape(-1, probs[0].shape[1]),
    )
    row = replace(
        row,
        inputs_T=jnp.stack(inputs, axis=1).reshape(-1),
        texts_MS=texts_GkS.reshape(row.texts_MS.shape),
    )
    return pools, row, guessed


def drafted(logits_GV: jax.Array, draws: Draws) -> tuple[jax.Array, jax.Array]:
    """(a token of each row int32 [G], the distribution [G, V] that it was drawn from), of the
    draft's logits. Its sampling is that of the request but for penalties on what is there, and it
    knows a text's grammar at its first guess alone: the others are on the device only."""
    nothing_G1 = jnp.full((len(logits_GV), 1), -1)
    logits_GV = allowed(penalized(logits_GV, draws.penalties, nothing_G1), draws)
    settings = {
        **draws.settings_M1,
        "repetition_penalty": jnp.ones_like(draws.seed_M[:, None], float),
    }
    probs_GV = jax.nn.softmax(shaped(logits_GV, settings, nothing_G1), axis=-1)
    drawn_G = draw(probs_GV, uniform(draws, DRAFTED))
    greedy_G = draws.settings_M1["temperature"][:, 0] == 0
    return jnp.where(greedy_G, likeliest(logits_GV), drawn_G), probs_GV


def _fed(
    params: Tree, pools: PagedCache, fields: dict, row: Row, model: Model, shape: Shape
) -> tuple[jax.Array, PagedCache]:
    """(states [1, T, D] of tokens, the pools with them). One token of each text, or a whole row."""
    model = replace(model, execution=replace(Execution(), unroll=0))
    each = len(fields["inputs"]) // shape.singles if not shape.chunk else 1
    how = {"singles": shape.singles, "first": virtual_tokens(params), "each": each}
    cache = pools.of(row.table_RC, row.slot_R, **how)
    batch = {name: x[None] for name, x in fields.items()}
    hidden_1TD, cache = model.decode(params, batch, cache)
    return hidden_1TD, cache.bare()


def _first(draws: Draws, shape: Shape, ahead: int) -> Draws:
    """The draws of each text's token number `ahead`, one a text."""
    pick = lambda x_M: x_M[ahead :: shape.each]
    # Of a text without room for so many guesses nobody reads what is drawn.
    return replace(jax.tree.map(pick, replace(draws, top=None)), top=draws.top)
