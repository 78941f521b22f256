"""The texts of one window of sound: the likeliest by beam search, or the best of several that are
drawn, under Whisper's rules of times."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.data.tokenizers import Tokenizer
from research.infer import speech_steps as steps
from research.infer.decode_layout import prepare
from research.infer.padding import bucket, chunk_size
from research.infer.speech_tokens import SpeechTokens, read_speech_tokens
from research.models.model import Model
from research.tree import Tree


@dataclass(frozen=True)
class Speech:
    """A Whisper in use: its parameters as they are, for what is read at once, and `prepared` for
    what is written token by token (`research.infer.decode_layout`)."""

    model: Model
    params: Tree
    prepared: Tree
    tokens: SpeechTokens


def open_speech(
    model: Model, params: Tree, tokenizer: Tokenizer | None, generation: Mapping[str, Any]
) -> Speech:
    """A Whisper for use, by its tokenizer and its generation_config.json. ValueError for another
    model, and for a tokenizer that is not Whisper's."""
    tokens = read_speech_tokens(tokenizer, model.config, generation)
    return Speech(model, params, prepare(model, params), tokens)


@dataclass(frozen=True)
class Text:
    """What is said in a window.

    ids      tokens of words and times, without the end
    score    the sum of their log-probabilities and the end's, over the number of `ids`
    silence  the probability that nothing is said, before any rule
    """

    ids: list[int]
    score: float
    silence: float

    @property
    def mean(self) -> float:
        """The mean log-probability of a token in nats, the end among them."""
        return self.score * len(self.ids) / (len(self.ids) + 1)


@dataclass
class _Texts:
    """The texts that are being written, (log-probability, ids), and those that have ended, (score,
    ids)."""

    limit: int
    running: list[tuple[float, list[int]]]
    finished: list[tuple[float, list[int]]] = field(default_factory=list)

    def end(self, logprob: float, ids: list[int]) -> None:
        """Takes a text that has ended."""
        self.finished.append((logprob / max(len(ids), 1), ids))


@dataclass(frozen=True)
class Heard:
    """A window that has been heard and the prompt that has been read before its text.

    memory     keys and values of what was heard, as `Model.encode` has them
    cache      of one row, with the prompt
    count      tokens of the prompt
    logits_1V  float32, of what follows the prompt
    silence    the probability that nothing is said
    """

    memory: Any
    cache: Any
    count: int
    logits_1V: jax.Array
    silence: float


def listen(speech: Speech, memory: Any, prompt: list[int]) -> Heard:
    """Reads the prompt before the text of a window, of which `memory` is what was heard."""
    model, tokens = speech.model, speech.tokens
    width = chunk_size(len(prompt))
    padded_1T = np.zeros((1, width), np.int32)
    padded_1T[0, : len(prompt)] = prompt
    slots = len(prompt) + model.config.max_length // 2
    length = max(width, min(bucket(slots), model.config.max_length))
    start = np.int32(prompt.index(tokens.start))
    cache, last_1V, start_1V = steps.read(
        speech.params, memory, padded_1T, np.int32(len(prompt)), start, model=model, length=length
    )
    silence = jax.nn.softmax(start_1V[0])[tokens.silence]
    return Heard(memory, cache, len(prompt), last_1V, float(silence))


def search(speech: Speech, heard: Heard, beams: int) -> Text:
    """The text of the best score among those that a beam search ends first: as many as there are
    `beams`."""
    texts = _Texts(_limit(speech.model, heard), [(0.0, [])])
    end = speech.tokens.end

    def choose(logprobs_BV: jax.Array) -> list[int]:
        # So many that words enough are among them where half of them are ends.
        found = steps.best(logprobs_BV, count=min(2 * beams, logprobs_BV.shape[1]))
        return _take_best(texts, *jax.device_get(found), beams, end)

    _write(speech, heard, texts, choose, beams)
    return _best(texts, heard)


def sample(speech: Speech, heard: Heard, count: int, temperature: float, key: jax.Array) -> Text:
    """The text of the best score among `count` that are drawn at a temperature over 0."""
    texts = _Texts(_limit(speech.model, heard), [(0.0, [])] * count)
    end = speech.tokens.end

    def choose(logprobs_BV: jax.Array) -> list[int]:
        own = jax.random.fold_in(key, len(texts.running[0][1]))
        # All begin behind the one prompt.
        rows_BV = jnp.repeat(logprobs_BV, count // len(logprobs_BV), axis=0)
        logprobs_B1, ids_B1 = jax.device_get(steps.draw(rows_BV, temperature, own))
        came_from, running = [], []
        for row, (logprob, ids) in enumerate(texts.running):
            logprob, token = logprob + float(logprobs_B1[row, 0]), int(ids_B1[row, 0])
            if token == end or len(ids) + 1 == texts.limit:
                texts.end(logprob, ids if token == end else [*ids, token])
            else:
                running.append((logprob, [*ids, token]))
                came_from.append(row)
        texts.running = running
        return came_from

    _write(speech, heard, texts, choose, count)
    return _best(texts, heard)


def _limit(model: Model, heard: Heard) -> int:
    """Tokens of a text: half of the positions, and no more than are left."""
    longest = model.config.max_length
    return min(longest // 2, longest - heard.count + 1)


def _best(texts: _Texts, heard: Heard) -> Text:
    if not texts.finished:
        raise ValueError("the model's logits are not finite, so no token follows; see its weights")
    score, ids = max(texts.finished, key=lambda one: one[0])
    return Text(ids, score, heard.silence)


def _take_best(
    texts: _Texts, logprobs_Bk: np.ndarray, ids_Bk: np.ndarray, beams: int, end: int
) -> list[int]:
    """Takes the best tokens after each text, and returns which text each that goes on came from;
    none goes on where as many as there are beams have ended."""
    candidates = [
        (text[0] + float(logprob), row, int(token))
        for row, text in enumerate(texts.running)
        for logprob, token in zip(logprobs_Bk[row], ids_Bk[row])
        if np.isfinite(logprob)
    ]
    candidates.sort(key=lambda one: -one[0])
    came_from, running = [], []
    last = len(texts.running[0][1]) + 1 == texts.limit
    for rank, (logprob, row, token) in enumerate(candidates[: 2 * beams]):
        ids = texts.running[row][1]
        if token == end or last:
            # An end that is not among the best would not be gone on with either.
            if rank < beams:
                texts.end(logprob, ids if token == end else [*ids, token])
        elif len(running) < beams:
            running.append((logprob, [*ids, token]))
            came_from.append(row)
    texts.running = [] if len(texts.finished) >= beams else running
    return came_from


def _write(
    speech: Speech,
    heard: Heard,
    texts: _Texts,
    choose: Callable[[jax.Array], list[int]],
    rows: int,
) -> None:
    """Adds tokens until no text is running. `choose` puts one behind each text, of the
    log-probabilities [B, V] of those that may follow, and returns the rows they came from."""
    model, tokens = speech.model, speech.tokens
    known = dict(times=tokens.times, end=tokens.end)
    opening = _rules([[]], tokens)
    came_from = choose(steps.allowed(heard.logits_1V, opening, tokens.openings, **known))
    apart = isinstance(speech.prepared["layers"], tuple)
    cache = steps.spread(heard.cache, rows=rows, apart=apart)
    position = heard.count
    while texts.running:
        filled = [*range(len(texts.running)), *[0] * (rows - len(texts.running))]
        rows_B = np.array([came_from[n] for n in filled], np.int32)
        tokens_B = np.array([texts.running[n][1][-1] for n in filled], np.int32)
        cache, logits_BV = steps.extend(
            speech.prepared, cache, heard.memory, rows_B, tokens_B, np.int32(position), model=model
        )
        rules = _rules([texts.running[n][1] for n in filled], tokens)
        came_from = choose(steps.allowed(logits_BV, rules, tokens.suppressed, **known))
        position += 1


def _rules(texts: list[list[int]], tokens: SpeechTokens) -> steps.Rules:
    """What may follow each text: times stand in pairs, or before the end, and rise from one
    pair to the next."""
    words, least, weighed = [], [], []
    for ids in texts:
        said = [n for n in ids if n >= tokens.times]
        after_time = bool(ids) and ids[-1] >= tokens.times
        paired = after_time and (len(ids) < 2 or ids[-2] >= tokens.times)
        words.append(not after_time or paired)
        # A segment takes time: what ends it is later than what began it, the next may begin there.
        last = said[-1] + (not after_time) if said else tokens.times
        least.append(tokens.vocab_size if paired else last)
        weighed.append(not paired)
    return steps.Rules(np.array(words), np.array(least, np.int32), np.array(weighed))
