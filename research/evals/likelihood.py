"""The log-likelihood of continuations, each given its context: what multiple choice compares."""

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from research.data.tokenizers import Tokenizer
from research.evals.evaluation import Opened
from research.evals.perplexity import place_whole, whole_rows
from research.models.model import Model
from research.ops.loss import cross_entropy
from research.tree import Tree

_log = logging.getLogger(__name__)

_LOGITS = 2**25  # of a batch, 128 MiB in float32
_TOKENS = 2**13  # of a batch
_ROWS = 32


@dataclass(frozen=True)
class Likelihood:
    """Of a continuation: its log-probability in nats over all its tokens, whether each is the
    likeliest one, and the number of tokens."""

    nats: float
    greedy: bool
    tokens: int


def encode_pair(
    tokenizer: Tokenizer, context: str, continuation: str, begins_texts: bool = True
) -> tuple[list[int], list[int]]:
    """The ids of a context and of what follows it, which are those of both texts as one. Space at
    the end of the context goes to the continuation, whose first word it belongs to.

    A context without tokens becomes the token that begins a text, or that ends one.
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    before, whole = tokenizer.encode(kept), tokenizer.encode(kept + continuation)
    begin = [tokenizer.bos_id] if begins_texts and tokenizer.bos_id is not None else []
    if before[: len(begin)] == begin:  # a chat's template has written it
        begin = []
    if not before and not begin:
        begin = [tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id]
    return [*begin, *whole[: len(before)]], whole[len(before) :]


def log_likelihoods(
    opened: Opened, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], window: int = 0
) -> list[Likelihood]:
    """The likelihood of each (context, continuation) of token ids, in order.

    A pair longer than the window (0: than the model's positions) loses the beginning of its
    context, which is said in one line. ValueError for a model that is no decoder, and for a
    continuation that is empty or longer than the window.
    """
    model = opened.model
    if model.config.kind != "decoder":
        raise ValueError(
            f"the model is of kind {model.config.kind}, and only a decoder gives a continuation a "
            "likelihood"
        )
    window = min(window or model.config.max_length, model.config.max_length)
    _check(pairs, window)
    # Continuations that follow the same ids share a row: an answer of one token, as "yes" or "B",
    # costs no more than its context.
    shared: dict[tuple[int, ...], list[int]] = {}
    for number, (context, continuation) in enumerate(pairs):
        shared.setdefault((*context, *continuation[:-1])[-window:], []).append(number)
    found: list[Likelihood] = [Likelihood(0.0, False, 0)] * len(pairs)
    done = 0
    for rows in _batches(shared, pairs, model):
        for number, likelihood in _score(opened, pairs, rows):
            found[number] = likelihood
        done += len(rows)
        _show(done, len(shared))
    return found


def _show(done: int, rows: int) -> None:
    """A line on a terminal, which the last one clears."""
    if sys.stderr.isatty() and not jax.process_index():
        line = f"scored {done:,} of {rows:,} texts" if done < rows else ""
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


Row = tuple[tuple[int, ...], list[int]]  # the ids that are read, the pairs that share them


def _check(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], window: int) -> None:
    cut = 0
    for number, (context, continuation) in enumerate(pairs):
        if not len(context) or not len(continuation) or len(continuation) > window:
            raise ValueError(
                f"pair {number} has {len(context)} tokens and {len(continuation)} to score; wanted "
                f"one of each at least, and at most {window} to score"
            )
        cut += len(context) + len(continuation) - 1 > window
    if cut:
        _log.warning(
            f"{cut} of {len(pairs)} texts are longer than {window} tokens: their "
            "beginnings are not read"
        )


def _batches(
    shared: dict[tuple[int, ...], list[int]],
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    model: Model,
) -> Iterator[list[Row]]:
    """Rows of similar sizes together, as many as their memory allows."""
    sized = sorted(
        shared.items(),
        key=lambda row: (_padded(len(row[0])), *_scored(row, pairs), row[1][0]),
    )
    while sized:
        batch = sized[:1]
        for row in sized[1:_ROWS]:
            width = _padded(len(row[0]))
            count, length = map(max, zip(_scored(row, pairs), *(_scored(r, pairs) for r in batch)))
            size = _power(len(batch) + 1)
            logits = size * length * max(count, 1) * model.config.vocab_size
            if width != _padded(len(batch[0][0])) or size * width > _TOKENS or logits > _LOGITS:
                break
            batch.append(row)
        sized = sized[len(batch) :]
        yield batch


def _scored(row: Row, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[int, int]:
    """(continuations of a row, tokens of the longest), each as the next power of two, since every
    size is compiled."""
    return _power(len(row[1])), _power(max(len(pairs[number][1]) for number in row[1]))


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _padded(length: int) -> int:
    """The next of 16, 24, 32, 48, 64, 96, ...: few programs, a quarter of padding at most half."""
    size = max(_power(length), 16)
    return size * 3 // 4 if length <= size * 3 // 4 and size > 16 else size


def _score(
    opened: Opened, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], rows: list[Row]
) -> Iterator[tuple[int, Likelihood]]:
    """(number of the pair, its likelihood) for the pairs of a batch."""
    model, mesh = opened.model, jax.sharding.get_mesh()
    size = _power(len(rows)) if mesh.empty else whole_rows(_power(len(rows)), mesh, model)
    width = _padded(max(len(ids) for ids, _ in rows))
    many, long = map(max, zip(*(_scored(row, pairs) for row in rows)))
    tokens_BT, segments_BT = np.zeros((2, size, width), np.int32)
    places_BC, targets_BKC = (
        np.zeros((size, long), np.int32),
        np.zeros((size, many, long), np.int32),
    )
    for at, (ids, numbers) in enumerate(rows):
        tokens_BT[at, : len(ids)], segments_BT[at, : len(ids)] = ids, 1
        # The states before the last tokens, the longest continuation's; shorter ones end there too.
        places_BC[at] = np.maximum(np.arange(len(ids) - long, len(ids)), 0)
        for k, number in enumerate(numbers):
            continuation = pairs[number][1]
            targets_BKC[at, k, long - len(continuation) :] = continuation
    positions_BT = np.broadcast_to(np.arange(width, dtype=np.int32), tokens_BT.shape)
    batch = {"inputs": tokens_BT, "segments": segments_BT, "positions": positions_BT}
    batch |= {"places": places_BC, "targets": targets_BKC}
    inputs = batch if mesh.empty else place_whole(batch, mesh, model)
    nll_BKC, likeliest_BC = jax.device_get(_continuations(opened.params, inputs, model=model))
    for at, (_, numbers) in enumerate(rows):
        for k, number in enumerate(numbers):
            length = len(pairs[number][1])
            nats_C = np.asarray(nll_BKC[at, k, long - length :], np.float64)
            right = likeliest_BC[at, long - length :] == targets_BKC[at, k, long - length :]
            yield number, Likelihood(-float(nats_C.sum()), bool(right.all()), length)


@partial(jax.jit, static_argnames="model")
def _continuations(
    params: Tree, batch: dict[str, jax.Array], *, model: Model
) -> tuple[jax.Array, jax.Array]:
    """(nats of K continuations of each row float32 [B, K, C], the likeliest token at each place
    [B, C])."""
    fields = {name: batch[name] for name in ("inputs", "segments", "positions")}
    hidden_BTD, _ = model.hidden(params, fields)
    # Logits of the scored places alone: those of a whole context would take longer than the model.
    states_BCD = jax.vmap(lambda states_TD, places_C: states_TD[places_C])(
        hidden_BTD, batch["places"]
    )
    logits_BCV = model.logits(params, states_BCD)
    targets_BKC = batch["targets"]
    nll_KBC = [cross_entropy(logits_BCV, targets_BKC[:, k])[1] for k in range(targets_BKC.shape[1])]
    nll_BKC = jnp.stack(nll_KBC, axis=1)
    likeliest_BC = jnp.argmax(logits_BCV, axis=-1)
    if jax.sharding.get_abstract_mesh().empty:
        return nll_BKC, likeliest_BC
    # Whole on every device, so that every process can read all of it.
    return jax.reshard(nll_BKC, PartitionSpec()), jax.reshard(likeliest_BC, PartitionSpec())
