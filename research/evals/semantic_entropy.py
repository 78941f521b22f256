"""Uncertainty of answers by their meaning, and simpler scores beside it: do they tell right answers
from wrong ones?"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from research.evals.auroc import areas, tally
from research.evals.evaluation import Evaluation, Item, Opened, RunData, Totals
from research.evals.likelihood import encode_pair, log_likelihoods
from research.evals.sampled import Answered, Questions, SampledConfig
from research.evals.text_metrics import plain_words
from research.evals.truthfulness import shares

_JUDGED = (" True", " False")


@dataclass(frozen=True)
class SemanticEntropyConfig(SampledConfig):
    """The fields of `research.evals.sampled.SampledConfig`."""


@dataclass(frozen=True)
class SemanticEntropy(Evaluation):
    """Answers of the likeliest tokens, and how sure a model is of them by six scores.

    Two answers mean the same if their words do, without case, punctuation and articles, which is
    enough for short ones.

    accuracy    share of answers that are right
    unread      share of answers without a word, which are counted as wrong
    entropy     mean over questions of the entropy in nats of the meanings of answers by lot (the
                discrete form of Farquhar et al. 2024, doi:10.1038/s41586-024-07421-0)
    agreement   mean share of answers by lot that mean what the judged one does (self-consistency)
    p_true      mean probability of "True" against "False" that the model gives its answer, shown
                with those by lot (arXiv:2207.05221, section 3)
    logprob     mean log-probability of a token of the answer, in nats
    length      tokens of an answer
    auroc_NAME  how well a score tells right answers from wrong ones: low entropy, high agreement,
                p_true and logprob, and `length`, short answers being held for right, which the
                others have to beat (arXiv:2508.08285)
    """

    questions: Questions

    config = SemanticEntropyConfig
    main = "accuracy"

    @classmethod
    def make(cls, config: SemanticEntropyConfig, data: RunData) -> "SemanticEntropy":
        """ValueError for data that cannot be read, and for a model that is no decoder."""
        if data.model_kind != "decoder":
            raise ValueError(f"the model is of kind {data.model_kind}; only a decoder judges")
        return cls(Questions.make(config, data))

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a question."""
        answered = self.questions.answer(opened)
        judged = _p_true(opened, answered)
        for one, p_true in zip(answered, judged):
            yield _item(one, p_true)

    def values(self, totals: Totals) -> dict[str, float]:
        """Means over questions, and areas under curves."""
        return {**super().values(totals), **areas(totals)}


def meaning(text: str) -> str:
    """What an answer is compared by."""
    return " ".join(plain_words(text))


def entropy(texts: Sequence[str]) -> float:
    """The entropy of their meanings in nats, 0 if all mean the same.

    >>> round(entropy(["Paris", "paris.", "the Paris", "Lyon"]), 4)
    0.5623
    """
    counted = Counter(map(meaning, texts))
    # Adding 0.0 turns the -0.0 of a single meaning into 0.0.
    return -sum(n / len(texts) * math.log(n / len(texts)) for n in counted.values()) + 0.0


def _p_true(opened: Opened, answered: Sequence[Answered]) -> list[float]:
    if opened.tokenizer is None:
        raise ValueError("the model has no tokenizer; put its tokenizer.json into the folder")
    pairs = []
    for one in answered:
        ideas = "\n".join(dict.fromkeys(sample.text.strip() for sample in one.samples))
        prompt = (
            f"Question: {one.task.prompt}\nHere are some brainstormed ideas:\n{ideas}\n"
            f"Possible answer: {one.answer.text.strip()}\nIs the possible answer:\n(A) True\n"
            "(B) False\nThe possible answer is:"
        )
        for judged in _JUDGED:
            pairs.append(encode_pair(opened.tokenizer, prompt, judged, opened.begins_texts))
    found = iter(log_likelihoods(opened, pairs))
    return [float(shares([next(found).nats for _ in _JUDGED])[0]) for _ in answered]


def _item(one: Answered, p_true: float) -> Item:
    meant = meaning(one.answer.text)
    texts = [sample.text for sample in one.samples]
    numbers = {
        "entropy": entropy(texts),
        "agreement": sum(meaning(text) == meant for text in texts) / len(texts),
        "p_true": p_true,
        "logprob": sum(one.answer.logprobs) / max(len(one.answer.logprobs), 1),
        "length": float(len(one.answer.token_ids)),
    }
    totals: Totals = {"accuracy": (one.right, 1.0), "unread": (float(not meant), 1.0)}
    for name, value in numbers.items():
        totals[name] = (value, 1.0)
        sign = -1 if name in ("entropy", "length") else 1
        totals |= tally(name, sign * value, one.right)
    return Item(one.task.id, totals, one.texts, dict(one.task.slices))
