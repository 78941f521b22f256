"""Labels of the words of texts, and the spans that they mark, such as names."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from research.data.entities import read_entities
from research.data.framing import Frame
from research.data.stretches import stretches, token_span, trimmed
from research.data.tags import words_of
from research.data.tokenizers import Tokenizer
from research.infer.label_rows import label_scores
from research.models.model import Model
from research.tree import Tree


@dataclass(frozen=True)
class Word:
    """Characters `start` to `stop` - 1 of a text, the number of their label and its probability;
    None and 0 for a word that the tokenizer has no token for."""

    start: int
    stop: int
    label: int | None
    probability: float


@dataclass(frozen=True)
class Entity:
    """A span of a text and its label, such as "PER"; `probability` is the mean of its words'."""

    start: int
    stop: int
    label: str
    text: str
    probability: float


def label_words(
    model: Model,
    params: Tree,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    max_tokens: int,
    overlap: int,
    words: Sequence[Sequence[tuple[int, int]]] | None = None,
) -> list[list[Word]]:
    """The label of each word of each text: that of its first token, as in training. `words` are the
    bounds of each text's words, by default `research.data.tags.words_of`. A text that is longer
    than `max_tokens` is read in windows that share `overlap` tokens. ValueError for a model without
    labels of tokens."""
    longest = min(max_tokens, model.config.max_length)
    frame = Frame.of(tokenizer)
    room = frame.room(longest)
    found, rows = [], []
    for number, (text, (ids, places)) in enumerate(zip(texts, tokenizer.align_batch(list(texts)))):
        bounds = np.array(trimmed(text, places), np.int64).reshape(-1, 2)
        for one in stretches(len(ids), room, min(overlap, room // 3)):
            rows.append(frame.row(longest, ids[one.start : one.stop]))
            found.append((number, one, bounds))
    given = [words_of(text) for text in texts] if words is None else words
    labelled: list[list[Word]] = [
        [Word(start, stop, None, 0.0) for start, stop in own] for own in given
    ]
    for at, scores_TV in label_scores(model, params, rows, "tokens"):
        number, one, bounds = found[at]
        for place, (start, stop) in enumerate(given[number]):
            first, last = token_span(bounds[:, 0], bounds[:, 1], start, stop)
            if first <= last and one.first <= first < one.last:
                scores_V = scores_TV[first - one.start + frame.start()]
                probs_V = np.exp(scores_V - scores_V.max())
                label = int(scores_V.argmax())
                probability = float(probs_V[label] / probs_V.sum())
                labelled[number][place] = Word(start, stop, label, probability)
    return labelled


def entities(text: str, words: Sequence[Word], names: Sequence[str]) -> list[Entity]:
    """The spans of a text that its words' labels mark, by the rules of `read_entities`."""
    tags = ["O" if word.label is None else names[word.label] for word in words]
    found = []
    for label, first, last in read_entities(tags):
        inside = words[first : last + 1]
        start, stop = inside[0].start, inside[-1].stop
        mean = sum(word.probability for word in inside) / len(inside)
        found.append(Entity(start, stop, label, text[start:stop], mean))
    return found
