"""Generation of text by a loop over one batch: `generate` returns whole continuations, `stream`
yields them in pieces.

Conversations, jobs, evaluations and generation from several prompts write with the engine on a CPU
(`research.serve.batch`), whose texts are these. The loop writes what no engine runs: texts that
begin with an encoder's, those with images that see what is behind them, texts beyond a model's
positions or its first rotation, and those whose tokens or rows a mesh splits; beams are
`research.infer.beam`. It also writes single prompts, all on an accelerator, the rollouts of
`engine="batch"`, the sample of a training run and `research.load(...).generate`.
"""

import logging
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from research.data.tokenizers import Tokenizer
from research.infer.decode_layout import prepare
from research.infer.padding import row_count
from research.infer.prompt_images import media_of, pad_media, with_places
from research.infer.prompts import (
    Prompt,
    at_the_last_position,
    beyond_positions,
    check_ids,
    prompt_ids,
    source_and_start,
)
from research.infer.sampling import SamplingConfig
from research.infer.spans import spans
from research.infer.steps import TOKENS, Start, advance, begin
from research.infer.text import Continuation
from research.models.adapters import virtual_tokens
from research.models.config import Execution, ModelConfig
from research.models.model import Model
from research.tree import Tree

# Most prompts of a batch: `generate` takes more in several batches, so that memory for their
# caches does not grow with the number of prompts.
ROWS = 64
# Tokens between two pieces of a stream: few enough to look fluent, enough to hide the call.
STREAMED = 4

# Without a handler of the program's own, warnings are bare lines on standard error.
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generation:
    """A continuation of a prompt.

    text       the text after the prompt, without the stop string or end token
    token_ids  all tokens that were sampled, those of the end included
    logprobs   their log-probabilities in nats under the model itself, before temperature and the
               like, unless `SamplingConfig.scored` says otherwise
    finish     why it ended: "eos" at the tokenizer's end token, "stop" at a stop string or stop id
               of the config, "length" at the limit of tokens
    """

    prompt: Prompt
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str


def generate(
    model: Model,
    params: Tree,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    config: SamplingConfig = SamplingConfig(),
    images: Sequence[Any] = (),
    sounds: Sequence[Any] = (),
) -> list[Generation]:
    """One continuation for each prompt, which is a string or token ids; ids are used unchanged.

        generate(model, params, tokenizer, ["Once upon"], SamplingConfig(max_tokens=8))[0].text

    A continuation depends on its prompt, the config and the number of equal prompts before it, not
    on other prompts. Call it under the mesh of the parameters, if any. `images` has those of each
    prompt, [M, h, w, 3] or None, for a model that reads them, `sounds` log-mel frames likewise.
    ValueError for an encoder, a prompt outside the vocabulary, one that is too long, and media that
    do not fit their places.
    """
    media = media_of(len(prompts), images, sounds)
    rows = _rows(_of_text(model.config, params), tokenizer, prompts, config, media)
    for first in range(0, len(rows), ROWS):
        for _ in _write(model, params, tokenizer, rows[first : first + ROWS], config, TOKENS):
            pass
    return _generations(_of_text(model.config, params), rows, config)


def stream(
    model: Model,
    params: Tree,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    config: SamplingConfig = SamplingConfig(),
    images: Sequence[Any] = (),
    sounds: Sequence[Any] = (),
) -> Iterator[tuple[int, str]]:
    """Yields (index of the prompt, piece of its text) as soon as a piece can no longer change. The
    pieces of a prompt joined are the text of its continuation.

    The generator returns (`yield from`, StopIteration.value) what `generate` does.
    """
    media = media_of(len(prompts), images, sounds)
    rows = _rows(_of_text(model.config, params), tokenizer, prompts, config, media)
    sent = [0] * len(rows)
    for _ in _write(model, params, tokenizer, rows, config, STREAMED):
        # Only what is certain is sent: a stop string may begin in the last characters, and half a
        # letter of several bytes decodes to a replacement character.
        for index, row in enumerate(rows):
            text = row.text
            if text.certain > sent[index]:
                yield index, text.text[sent[index] : text.certain]
                sent[index] = text.certain
    return _generations(_of_text(model.config, params), rows, config)


@dataclass
class _Row:
    """A prompt and its continuation so far, on the host. `ids` are the decoder's tokens before the
    continuation, `source` the encoder's, `limit` the largest number of new tokens."""

    prompt: Prompt
    ids: list[int]
    source: list[int] | None
    stream: tuple[int, int]
    limit: int
    text: Continuation
    media: dict[str, Any] = field(default_factory=dict)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str = ""

    def add(
        self, token_id: int, logprob: float, eos_id: int | None, stop_ids: Sequence[int]
    ) -> None:
        """Adds the next token, and sets `finish` if it is the last one."""
        self.token_ids.append(token_id)
        self.logprobs.append(logprob)
        if token_id == eos_id:
            self.finish = "eos"
        elif token_id in stop_ids:
            self.finish = "stop"
        else:
            self.text.add(token_id)
            if self.text.stopped:
                self.finish = "stop"
            elif len(self.token_ids) == self.limit:
                self.finish = "length"
        if self.finish:
            self.text.close()

    def generation(self) -> Generation:
        """The row as it is returned to the user."""
        return Generation(
            self.prompt, self.text.text, tuple(self.token_ids), tuple(self.logprobs), self.finish
        )


def _write(
    model: Model,
    params: Tree,
    tokenizer: Tokenizer,
    rows: list[_Row],
    config: SamplingConfig,
    tokens: int,
) -> Iterator[None]:
    """Continues the rows to their ends, and yields whenever each has got up to `tokens` more."""
    # Not the execution of training: its kernels read no cache, and unrolled layers copy their
    # weights for every token (GPT-2 on a CPU: 66 ms against 54 scanned, for 8 rows 123 against 64).
    model = replace(model, execution=Execution())
    if "prompt" in params:
        params = _prompted(model, params)
    # Where the rotation of a text changes at some length, it is read again from there.
    for part, limits in spans(model.config, rows):
        yield from _continue(model, params, tokenizer, part, limits, config, tokens)


def _continue(
    model: Model,
    params: Tree,
    tokenizer: Tokenizer,
    rows: list[_Row],
    limits: list[int],
    config: SamplingConfig,
    tokens: int,
) -> Iterator[None]:
    """Continues the rows, some of whose tokens may be there, up to `limits` new tokens in all."""
    if not rows:
        return
    eos_id = tokenizer.eos_id
    ends = [i for i in (eos_id, *config.stop_ids) if i is not None]
    # Padded to a multiple of 8, since every size is compiled; -1 is no token.
    stop_ids = np.array(ends + [-1] * (-len(ends) % 8), np.int32)
    sources = None if rows[0].source is None else [row.source for row in rows]
    streams = [row.stream for row in rows]
    texts = [row.ids + row.token_ids for row in rows]
    new = [limit - len(row.token_ids) for limit, row in zip(limits, rows)]
    media = pad_media([row.media for row in rows], row_count(len(rows), model))
    start = Start(texts, sources, new, streams, config.seed, media)
    prepared = prepare(model, params)
    state, ids_BT, logprobs_BT = begin(
        model, params, prepared, start, config.distribution, stop_ids
    )
    count = 1  # sampled by `begin`
    while True:
        ids_BT, logprobs_BT = jax.device_get((ids_BT, logprobs_BT))
        for row, limit, ids, logprobs in zip(rows, limits, ids_BT.tolist(), logprobs_BT.tolist()):
            for token_id, logprob in zip(ids[:count], logprobs[:count]):
                if not row.finish and len(row.token_ids) < limit:
                    row.add(token_id, logprob, eos_id, config.stop_ids)
        yield
        left = [0 if row.finish else limit - len(row.token_ids) for limit, row in zip(limits, rows)]
        if not any(left):
            return
        count = min(tokens, max(left))
        # Stop strings are found on the host, so the device is told which rows have ended.
        open_B = np.array([*left, *[0] * (len(ids_BT) - len(left))]) > 0
        state, ids_BT, logprobs_BT = advance(
            prepared,
            state,
            open_B,
            np.int32(count),
            stop_ids,
            model=model,
            sampling=config.distribution,
        )


def _generations(c: ModelConfig, rows: list[_Row], config: SamplingConfig) -> list[Generation]:
    """What the user gets of the rows, and a line where the positions came to an end."""
    prompts = [len(row.ids) for row in rows]
    texts = [len(row.ids) + len(row.token_ids) for row in rows]
    if line := at_the_last_position(c, prompts, texts, config.max_tokens):
        _log.warning(line)
    return [row.generation() for row in rows]


_prompted = jax.jit(Model.prompted, static_argnums=0)


def _of_text(c: ModelConfig, params: Tree) -> ModelConfig:
    """The config with `max_length` less the virtual tokens: the positions left for a text."""
    virtual = virtual_tokens(params)
    return replace(c, max_length=c.max_length - virtual) if virtual else c


def _rows(
    c: ModelConfig,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    config: SamplingConfig,
    media: Sequence[dict[str, Any]] = (),
) -> list[_Row]:
    if c.kind == "encoder":
        raise ValueError(
            "the model is an encoder, which fills in masks and continues no text; choose a decoder"
        )
    rows, copies = [], Counter()
    for index, (prompt, seen) in enumerate(zip(prompts, media or [{}] * len(prompts))):
        ids = prompt_ids(tokenizer, prompt, config.bos)
        ids = with_places(c, index, ids, seen.get("images"), seen.get("sounds"))
        source, content = None, np.array(ids, "<i4").tobytes()
        # An empty source is one: it ends in the end token, as in training, and the decoder starts
        # from a token of its own.
        if c.kind == "encoder_decoder":
            source, ids = source_and_start(c, tokenizer, prompt, ids, config.decoder_ids)
        check_ids(c, index, prompt, ids if source is None else source, bool(seen))
        limit = config.max_tokens
        if c.position == "learned":
            longest = max(len(ids), len(source or ()))
            limit = min(limit, c.max_length - len(ids))
            if limit < 1 or longest > c.max_length:
                raise ValueError(
                    f"prompt {index} has {longest} tokens, the model {c.max_length} positions; "
                    "shorten it"
                )
        # A decoder's text goes on from the prompt: whether its first token begins with a space is
        # only known beside the last tokens of the prompt.
        text = Continuation(tokenizer.decode, ids if source is None else [], config.stop)
        # The stream of random numbers is chosen by the prompt's content, not by its place.
        stream = zlib.crc32(content), copies[content]
        rows.append(_Row(prompt, ids, source, stream, limit, text, seen))
        # Equal prompts are numbered, so that they get different random numbers.
        copies[content] += 1
    # Before anything is computed: reading such a prompt takes minutes.
    if line := beyond_positions(c, [max(len(row.ids), len(row.source or ())) for row in rows]):
        _log.warning(line)
    return rows
