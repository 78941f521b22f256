"""Log-likelihoods of texts under a masked model: of each token given all others, or of a part of a
text given the rest."""

import logging
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from research.data.tokenizers import Tokenizer
from research.evals.evaluation import Opened
from research.evals.perplexity import place_whole, whole_rows
from research.infer.text_batches import framed
from research.models.model import Model
from research.ops.loss import cross_entropy
from research.tree import Tree

_log = logging.getLogger(__name__)

_ROWS = 32  # masked texts of a batch
_STEP = 16  # lengths are rounded up to a multiple, so that few programs are compiled


def masked_nats(
    opened: Opened,
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    onward: bool = False,
) -> list[float]:
    """For each (ids, places) the sum over these places of the log-probability, in nats, of the
    token there when it alone is masked (arXiv:1910.14659, equation 1). Ids are without the tokens
    that frame a text.

    With `onward` the later places are masked with it, so that the sum is one of a chain: a word of
    several tokens is not likelier for its end being read where its beginning is asked for
    (arXiv:2305.10588, section 3, there within a word).

    ValueError for a model that is no encoder or has no mask token, and for a text that is longer
    than its positions.
    """
    tokenizer, model = opened.tokenizer, opened.model
    if model.config.kind != "encoder" or tokenizer is None or tokenizer.mask_id is None:
        raise ValueError(
            f"the model is of kind {model.config.kind}, with or without a mask token; only an "
            "encoder with one gives masked tokens a likelihood"
        )
    if not model.config.mlm_head:
        _log.warning(
            "the encoder has no head for words: its token table stands in, and unless it was "
            "trained to predict masked words so, these numbers mean nothing"
        )
    rows = []  # (text, ids with a mask, its place, the token there)
    for number, (ids, places) in enumerate(texts):
        whole, before = _framed(tokenizer, list(ids), model.config.max_length, number)
        for place in places:
            hidden = [later for later in places if later >= place] if onward else [place]
            shown = list(whole)
            for one in hidden:
                shown[before + one] = tokenizer.mask_id
            rows.append((number, shown, before + place, whole[before + place]))
    rows.sort(key=lambda row: len(row[1]))
    sums = [0.0] * len(texts)
    for first in range(0, len(rows), _ROWS):
        batch = rows[first : first + _ROWS]
        for (number, *_), nats in zip(batch, _score(opened, batch)):
            sums[number] += nats
    return sums


def tail(tokenizer: Tokenizer, text: str, end: str, stop: str = "") -> tuple[list[int], list[int]]:
    """(the ids of "text end stop", the places of those of `end`), for `masked_nats`."""
    before, until = (len(tokenizer.encode(one)) for one in (text, text + end))
    return tokenizer.encode(text + end + stop), list(range(before, until))


def _framed(
    tokenizer: Tokenizer, ids: list[int], longest: int, number: int
) -> tuple[list[int], int]:
    """(the ids within the tokens that begin and end a text, how many stand before them)."""
    marks = len(framed(tokenizer, [], longest))
    if len(ids) + marks > longest:
        raise ValueError(
            f"text {number} has {len(ids)} tokens and the model {longest} positions, {marks} of "
            "them for the ends; shorten it"
        )
    return framed(tokenizer, ids, longest), int(marks == 2)


def _score(opened: Opened, batch: Sequence[tuple[int, list[int], int, int]]) -> list[float]:
    model, mesh = opened.model, jax.sharding.get_mesh()
    size = _ROWS if mesh.empty else whole_rows(_ROWS, mesh, model)
    longest = max(len(ids) for _, ids, _, _ in batch)
    width = min(-(-longest // _STEP) * _STEP, model.config.max_length)
    tokens_BT, segments_BT = np.zeros((2, size, width), np.int32)
    places_B, targets_B = np.zeros((2, size), np.int32)
    for row, (_, ids, place, target) in enumerate(batch):
        tokens_BT[row, : len(ids)], segments_BT[row, : len(ids)] = ids, 1
        places_B[row], targets_B[row] = place, target
    positions_BT = np.broadcast_to(np.arange(width, dtype=np.int32), tokens_BT.shape)
    inputs = {"inputs": tokens_BT, "segments": segments_BT, "positions": positions_BT}
    inputs |= {"places": places_B, "targets": targets_B}
    placed = inputs if mesh.empty else place_whole(inputs, mesh, model)
    nats_B = jax.device_get(_nats(opened.params, placed, model=model))
    return np.asarray(nats_B, np.float64)[: len(batch)].tolist()


@partial(jax.jit, static_argnames="model")
def _nats(params: Tree, batch: dict[str, jax.Array], *, model: Model) -> jax.Array:
    """The log-probability of the target at each row's place, float32 [B]."""
    fields = {name: batch[name] for name in ("inputs", "segments", "positions")}
    hidden_BTD, _ = model.hidden(params, fields)
    states_B1D = jax.vmap(lambda states_TD, place: states_TD[place][None])(
        hidden_BTD, batch["places"]
    )
    logits_B1V = model.logits(params, states_B1D)
    nats_B = -jnp.squeeze(cross_entropy(logits_B1V, batch["targets"][:, None])[1], 1)
    whole = jax.sharding.get_abstract_mesh().empty
    return nats_B if whole else jax.reshard(nats_B, PartitionSpec())
