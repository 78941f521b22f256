"""Extractive question answering: exact match and F1 of SQuAD (arXiv:1606.05250, section 6.1), with
questions that have no answer (arXiv:1806.03822)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from research.evals.evaluation import Evaluation, Item, Opened, RunData, Totals
from research.evals.heldout_records import held_out, records_of
from research.evals.text_metrics import exact_match, f1
from research.infer.answers import answer


@dataclass(frozen=True)
class AnswersConfig:
    """data        a file of questions with their passages, such as SQuAD's; "" for what the run
                holds out
    max_tokens  passages that are longer with their question are read in windows; 0 for the length
                of training
    overlap     tokens that two windows of a passage share, at most a third of one
    limit       how many questions are read, 0 for all
    """

    data: str = ""
    max_tokens: int = 0
    overlap: int = 128
    limit: int = 0

    def __post_init__(self):
        for name in ("max_tokens", "overlap", "limit"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")


@dataclass(frozen=True)
class Asked:
    """A question on a passage and its right answers, () for a question without one."""

    id: str
    question: str
    passage: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Answers(Evaluation):
    """What a model answers, "" where it finds no answer.

    exact_match  share of questions whose answer has the words of a right one, without case,
                 punctuation and articles; of one without an answer, that it finds none
    f1           mean F1 of the words, of the right answer with the highest
    answerable_exact_match, answerable_f1, unanswerable  the same over questions with an answer,
                 and the share right of those without
    """

    questions: Sequence[Asked]
    max_tokens: int = 0
    overlap: int = 128

    config = AnswersConfig
    main = "f1"

    @classmethod
    def make(cls, config: AnswersConfig, data: RunData) -> "Answers":
        """ValueError for data that cannot be read."""
        documents = (
            records_of(config.data, "questions", config.limit)
            if config.data
            else held_out(data, "questions", config.limit)
        )
        questions = [
            Asked(
                id,
                one["question"],
                one["context"],
                tuple(one["context"][slice(*place)] for place in json.loads(one["answers"])),
            )
            for id, one in documents
        ]
        return cls(questions, config.max_tokens, config.overlap)

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a question. ValueError for a model without scores of an answer's ends."""
        if opened.tokenizer is None:
            raise ValueError("the model has no tokenizer; put its tokenizer.json into the folder")
        asked = [(one.question, one.passage) for one in self.questions]
        longest = self.max_tokens or opened.window
        found = answer(opened.model, opened.params, opened.tokenizer, asked, longest, self.overlap)
        for one, got in zip(self.questions, found):
            references = one.answers or ("",)
            totals: Totals = {**exact_match(got.text, references), **f1(got.text, references)}
            kind = "answerable" if one.answers else "unanswerable"
            totals |= {f"{kind}/{name}": value for name, value in totals.items()}
            told = {"question": one.question, "passage": one.passage[:500], "found": got.text}
            yield Item(one.id, totals, {**told, "answer": " | ".join(one.answers)})

    def values(self, totals: Totals) -> dict[str, float]:
        """The numbers by name, as the class describes them; those of a kind of questions only
        where there are some."""
        parts = {
            "answerable_exact_match": "answerable/exact_match",
            "answerable_f1": "answerable/f1",
            "unanswerable": "unanswerable/exact_match",
        }
        more = {
            name: totals[part][0] / totals[part][1]
            for name, part in parts.items()
            if part in totals
        }
        return {**super().values(totals), **more}
