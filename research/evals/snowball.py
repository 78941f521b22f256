"""Questions with an exact answer that models get wrong in a constant way: whether a number is
prime, and whether flights lead from one city to another (arXiv:2305.13534)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from research.evals.auroc import areas, tally
from research.evals.evaluation import Evaluation, Item, Opened, RunData, Totals
from research.evals.likelihood import encode_pair, log_likelihoods
from research.evals.records import read_records
from research.evals.snowball_sets import Asked, balanced
from research.evals.truthfulness import shares

_ANSWERS = ("yes", "no")


@dataclass(frozen=True)
class SnowballConfig:
    """sets    which questions: "primes", "flights"
    limit   how many are asked of each set, half with either answer; 0 for all
    seed    draws them
    prompt  a template with {question}
    window  most tokens that are read, 0 for as many as the model can
    """

    sets: tuple[str, ...] = ("primes", "flights")
    limit: int = 50
    seed: int = 1
    prompt: str = "Q: {question}\nA:"
    window: int = 0

    def __post_init__(self):
        if not self.sets or not set(self.sets) <= {"primes", "flights"}:
            raise ValueError(f"sets={self.sets} must be of primes and flights")
        for name in ("limit", "seed", "window"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if "{question}" not in self.prompt:
            raise ValueError(f"prompt={self.prompt!r} has no {{question}}")


@dataclass(frozen=True)
class Snowball(Evaluation):
    """The likelier of " Yes" and " No" after a question.

    The published sets have one answer each: all numbers are prime, no flights lead anywhere. A
    model that always says the same would be right on all of one. So as many questions with the
    other answer are added: composite numbers without a small factor, and cities that are reached.

    balanced_accuracy  mean of the shares of right answers to questions of either answer; 0.5 of a
                       constant answer
    accuracy           share of right answers
    said_yes           share of questions answered by yes
    auroc_confidence   how well the probability of the chosen answer tells right from wrong
    auroc_length       the same of the question's length alone, short ones being held for sure
    """

    questions: Sequence[Asked]
    prompt: str = SnowballConfig.prompt
    window: int = 0

    config = SnowballConfig
    main = "accuracy"

    @classmethod
    def make(cls, config: SnowballConfig, data: RunData) -> "Snowball":
        """ValueError if the sets cannot be had, and for a model that is no decoder."""
        if data.model_kind != "decoder":
            raise ValueError(f"the model is of kind {data.model_kind}; only a decoder answers")
        questions: list[Asked] = []
        for name in config.sets:
            published = [record for _, record in read_records(f"snowball_{name}")]
            questions += balanced(name, published, config.limit, config.seed)
        return cls(questions, config.prompt, config.window)

    def notes(self) -> Sequence[str]:
        """What was added, and what is left out."""
        return (
            "answers are the likelier of yes and no; half of the questions were added to the "
            "published ones, all of whose answers are equal; the published questions on senators "
            "are left out, as no balanced counterparts are known",
        )

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a question."""
        if opened.tokenizer is None:
            raise ValueError("the model has no tokenizer; put its tokenizer.json into the folder")
        prompts = [self.prompt.replace("{question}", one.question) for one in self.questions]
        pairs = [
            encode_pair(opened.tokenizer, prompt, f" {answer.title()}", opened.begins_texts)
            for prompt in prompts
            for answer in _ANSWERS
        ]
        found = iter(log_likelihoods(opened, pairs, self.window))
        for one in self.questions:
            shares_C = shares([next(found).nats for _ in _ANSWERS])
            yield _item(one, shares_C)

    def values(self, totals: Totals) -> dict[str, float]:
        """Means over questions, the mean over both answers, and areas under curves."""
        values = {**super().values(totals), **areas(totals)}
        sides = [totals[name] for name in ("right/yes", "right/no") if name in totals]
        if len(sides) == 2:
            values["balanced_accuracy"] = sum(right / count for right, count in sides) / 2
        return values


def _item(one: Asked, shares_C: np.ndarray) -> Item:
    said = _ANSWERS[int(np.argmax(shares_C))]
    wanted = _ANSWERS[not one.answer]
    right = float(said == wanted)
    totals: Totals = {
        "accuracy": (right, 1.0),
        "said_yes": (float(said == "yes"), 1.0),
        f"right/{wanted}": (right, 1.0),
        **tally("confidence", float(shares_C.max()), right),
        **tally("length", -float(len(one.question)), right),
    }
    texts = {"prompt": one.question, "chosen": said, "answer": wanted}
    return Item(one.id, totals, texts, {"set": one.set, "truth": wanted})
