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
from research.ops.attention import EVERYONE
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
    rows = _rows(pairs, window, model, _branches(opened))
    found: list[Likelihood] = [Likelihood(0.0, False, 0)] * len(pairs)
    done = 0
    for batch in _batches(rows, model):
        for number, likelihood in _score(opened, pairs, batch):
            found[number] = likelihood
        done += len(batch)
        _show(done, len(rows))
    return found


def _show(done: int, rows: int) -> None:
    """A line on a terminal, which the last one clears."""
    if sys.stderr.isatty() and not jax.process_index():
        line = f"scored {done:,} of {rows:,} texts" if done < rows else ""
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Row:
    """A context that is read once, and the pairs that follow it.

    Of each continuation all but the last token is read, on a branch behind the context that sees
    the context and itself; an answer of one token, as "yes" or "B", reads nothing more.

    reads    the distinct branches that are not empty
    numbers  of the pairs
    scored   tokens of their continuations, all together
    """

    context: tuple[int, ...]
    reads: tuple[tuple[int, ...], ...]
    numbers: tuple[int, ...]
    scored: int

    @property
    def width(self) -> int:
        """Tokens that are read."""
        return len(self.context) + sum(map(len, self.reads))


def _branches(opened: Opened) -> bool:
    """Whether the branches of a context can share it: where what a token sees follows from segments
    and positions alone. Meshes split rows of plain texts, and experts may be full. Accelerators
    keep rows apart: their kernels cannot express branches, and no card has timed either form."""
    c = opened.model.config
    plain = c.position in ("rope", "learned") and not c.has_offsets and not c.experts
    plain = plain and not c.rope_scaling.by_length and "prompt" not in opened.params
    return plain and jax.sharding.get_mesh().empty and jax.default_backend() == "cpu"


def _rows(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], window: int, model: Model, branches: bool
) -> list[Row]:
    """The pairs by their contexts, as many in a row as its memory and the positions allow; without
    `branches` only those that read the same."""
    groups: dict[tuple[tuple[int, ...], tuple[int, ...]], list[Row]] = {}
    most = max(1, _LOGITS // model.config.vocab_size)
    for number, (given, continuation) in enumerate(pairs):
        context = tuple(given)[-(window - len(continuation) + 1) :]
        read = tuple(continuation[:-1])
        group = groups.setdefault((context, () if branches else read), [])
        if group:
            last = group[-1]
            reads = tuple(dict.fromkeys((*last.reads, read) if read else last.reads))
            scored = last.scored + len(continuation)
            row = Row(context, reads, (*last.numbers, number), scored)
            # Scores of attention are of all pairs of tokens, so rows must not grow without end.
            if row.width <= min(window, max(2 * len(context), 64)) and row.scored <= most:
                group[-1] = row
                continue
        group.append(Row(context, (read,) if read else (), (number,), len(continuation)))
    return [row for group in groups.values() for row in group]


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


def _batches(rows: Sequence[Row], model: Model) -> Iterator[list[Row]]:
    """Rows of similar sizes together, as many as their memory allows."""
    left = sorted(rows, key=lambda row: (*_kind(row), row.numbers[0]))
    while left:
        batch = left[:1]
        for row in left[1:_ROWS]:
            size = _power(len(batch) + 1)
            logits = size * _power(max(row.scored, batch[0].scored)) * model.config.vocab_size
            tokens = size * _padded(row.width)
            if _kind(row)[:2] != _kind(batch[0])[:2] or tokens > _TOKENS or logits > _LOGITS:
                break
            batch.append(row)
        left = left[len(batch) :]
        yield batch


def _kind(row: Row) -> tuple[bool, int, int]:
    """(whether it has several branches, its width as it is padded, tokens to score as the next
    power of two, since every size is compiled)."""
    return len(row.reads) > 1, _padded(row.width), _power(row.scored)


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
    width, many = (max(found) for found in zip(*(_kind(row)[1:] for row in rows)))
    batch = {"inputs": np.zeros((size, width), np.int32)}
    batch["segments"] = np.zeros_like(batch["inputs"])
    batch["positions"] = np.tile(np.arange(width, dtype=np.int32), (size, 1))
    batch["places"], batch["targets"] = np.zeros((2, size, many), np.int32)
    for at, row in enumerate(rows):
        _fill({name: field[at] for name, field in batch.items()}, row, pairs)
    inputs = batch if mesh.empty else place_whole(batch, mesh, model)
    scored = _continuations(opened.params, inputs, model=model, shared=_kind(rows[0])[0])
    nll_BQ, likeliest_BQ = jax.device_get(scored)
    for at, row in enumerate(rows):
        first = 0
        for number in row.numbers:
            length = len(pairs[number][1])
            of_it = slice(first, first + length)
            nats_Q = np.asarray(nll_BQ[at, of_it], np.float64)
            right = likeliest_BQ[at, of_it] == batch["targets"][at, of_it]
            yield number, Likelihood(-float(nats_Q.sum()), bool(right.all()), length)
            first += length


def _fill(
    fields: dict[str, np.ndarray],
    row: Row,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> None:
    """Writes a row into views [T] of the batch's tokens and [Q] of what is scored: the place whose
    state gives each token of a continuation, and the token."""
    end, shared = len(row.context), len(row.reads) > 1
    fields["inputs"][:end] = row.context
    fields["segments"][:end] = EVERYONE if shared else 1
    starts, at = {}, end
    for number, read in enumerate(row.reads):
        behind = slice(at, at + len(read))
        fields["inputs"][behind] = read
        fields["segments"][behind] = number + 1
        fields["positions"][behind] = np.arange(end, end + len(read))
        starts[read], at = at, at + len(read)
    first = 0
    for number in row.numbers:
        continuation = pairs[number][1]
        read = tuple(continuation[:-1])
        start = starts.get(read, end)
        of_it = slice(first, first + len(continuation))
        fields["places"][of_it] = [end - 1, *range(start, start + len(read))]
        fields["targets"][of_it] = continuation
        first += len(continuation)


@partial(jax.jit, static_argnames=("model", "shared"))
def _continuations(
    params: Tree, batch: dict[str, jax.Array], *, model: Model, shared: bool
) -> tuple[jax.Array, jax.Array]:
    """(nats of the scored tokens float32 [B, Q], the likeliest token at each place [B, Q])."""
    fields = {name: batch[name] for name in ("inputs", "segments", "positions")}
    if shared:
        fields["shared"] = fields["segments"]
    hidden_BTD, _ = model.hidden(params, fields)
    # Logits of the scored places alone: those of a whole context would take longer than the model.
    states_BQD = jax.vmap(lambda states_TD, places_Q: states_TD[places_Q])(
        hidden_BTD, batch["places"]
    )
    logits_BQV = model.logits(params, states_BQD)
    nll_BQ = cross_entropy(logits_BQV, batch["targets"])[1]
    likeliest_BQ = jnp.argmax(logits_BQV, axis=-1)
    if jax.sharding.get_abstract_mesh().empty:
        return nll_BQ, likeliest_BQ
    # Whole on every device, so that every process can read all of it.
    return jax.reshard(nll_BQ, PartitionSpec()), jax.reshard(likeliest_BQ, PartitionSpec())
