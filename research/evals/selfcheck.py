"""SelfCheckGPT's n-gram form: a sentence whose words a model's other answers do not have is likely
made up (arXiv:2303.08896, section 5.4)."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from research.evals.auroc import areas, tally
from research.evals.evaluation import Evaluation, Item, Opened, RunData, Totals
from research.evals.sampled import Answered, Questions, SampledConfig

_TOKENS = re.compile(r"\w+|[^\w\s]")
_SENTENCES = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class SelfCheckConfig(SampledConfig):
    """The fields of `research.evals.sampled.SampledConfig`."""


@dataclass(frozen=True)
class Surprise:
    """How unlikely the words of a passage are under the unigrams of all answers, in nats: the mean
    and the largest of each sentence, the mean over all words, and the mean of the largest."""

    mean: tuple[float, ...]
    largest: tuple[float, ...]
    whole_mean: float
    whole_largest: float


def unigram_surprise(sentences: Sequence[str], passage: str, samples: Sequence[str]) -> Surprise:
    """Of the `sentences` of a passage, under the words of it and of `samples` of the same answer,
    in lower case, without smoothing: its own words are counted, so none has probability 0.
    ValueError for a passage without words."""
    counted = Counter(word for text in (passage, *samples) for word in _words(text))
    total = sum(counted.values())
    by_sentence = [[-math.log(counted[word] / total) for word in _words(one)] for one in sentences]
    by_sentence = [nats for nats in by_sentence if nats]
    if not by_sentence:
        raise ValueError("the passage has no words")
    largest = tuple(map(max, by_sentence))
    words = [nat for nats in by_sentence for nat in nats]
    return Surprise(
        tuple(sum(nats) / len(nats) for nats in by_sentence),
        largest,
        sum(words) / len(words),
        sum(largest) / len(largest),
    )


def _words(text: str) -> list[str]:
    return _TOKENS.findall(text.lower())


@dataclass(frozen=True)
class SelfCheck(Evaluation):
    """Answers of the likeliest tokens, judged by the words of others by lot.

    accuracy            share of answers that are right
    unread              share of answers without a word, which are counted as wrong
    surprise            mean nats of a word under the unigrams of all answers
    auroc_mean, auroc_largest  how well a small surprise, the mean over words or the largest of a
                        sentence, tells right answers from wrong ones
    auroc_length        the same of the number of tokens alone, short answers being held for right
    """

    questions: Questions

    config = SelfCheckConfig
    main = "accuracy"

    @classmethod
    def make(cls, config: SelfCheckConfig, data: RunData) -> "SelfCheck":
        """ValueError for data that cannot be read, and for an encoder."""
        return cls(Questions.make(config, data))

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a question."""
        for one in self.questions.answer(opened):
            yield _item(one)

    def values(self, totals: Totals) -> dict[str, float]:
        """Means over questions, and areas under curves."""
        return {**super().values(totals), **areas(totals)}


def _item(one: Answered) -> Item:
    text = one.answer.text.strip()
    totals: Totals = {
        "accuracy": (one.right, 1.0),
        "unread": (float(not _words(text)), 1.0),
        **tally("length", -float(len(one.answer.token_ids)), one.right),
    }
    if _words(text):
        samples = [sample.text for sample in one.samples]
        found = unigram_surprise(_SENTENCES.split(text), text, samples)
        totals["surprise"] = (found.whole_mean, 1.0)
        totals |= tally("mean", -found.whole_mean, one.right)
        totals |= tally("largest", -found.whole_largest, one.right)
    return Item(one.task.id, totals, one.texts, dict(one.task.slices))
