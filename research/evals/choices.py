"""Multiple choice: which of several continuations a model holds for the likeliest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from research.evals.asked import Asked
from research.evals.evaluation import Evaluation, Item, Opened, RunData
from research.evals.likelihood import Likelihood, encode_pair, log_likelihoods
from research.evals.records import Record, read_records, slices_of

_CHOICES = ("choices", "options", "endings")
_ANSWERS = ("answer", "label", "gold", "answerKey", "target")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class ChoicesConfig:
    """data       a file of records, or a row of `research.evals.packaged.PACKAGED`
    prompt     see `research.evals.asked.Asked`, as `chat` and `system`
    choices    what to choose from, () for the record's "choices", "options" or "endings"
    delimiter  what stands between the prompt and a choice
    shots      the first so many records are examples with their answers, and are not asked
    limit      how many records are read, 0 for all
    seed       0 takes the first records, another number draws them
    window     most tokens that are read, 0 for as many as the model can
    slices     columns of the data whose values are groups of items
    """

    data: str = ""
    prompt: str = ""
    choices: tuple[str, ...] = ()
    delimiter: str = " "
    shots: int = 0
    limit: int = 0
    window: int = 0
    chat: bool = False
    system: str = ""
    slices: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self):
        if not self.data:
            raise ValueError("data is not set; set it to a file of questions with choices")
        for name in ("shots", "limit", "window", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        Asked(self.prompt, self.chat, self.system)


@dataclass(frozen=True)
class Question:
    """A question, its choices and the number of the right one."""

    id: str
    prompt: str
    choices: tuple[str, ...]
    answer: int
    slices: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Choices(Evaluation):
    """The continuation of the highest likelihood, over questions.

    acc       share of questions whose right choice is the likeliest
    acc_norm  the same with log-likelihoods divided by the characters of the choice
    mrr       mean of 1 / rank of the right choice
    margin    log-likelihood of the right choice less that of the best other one, in nats
    chance    what `acc` is of a choice by lot
    """

    questions: Sequence[Question]
    asked: Asked = Asked()
    delimiter: str = " "
    examples: Sequence[Question] = ()
    window: int = 0

    config = ChoicesConfig
    main = "acc"

    @classmethod
    def make(cls, config: ChoicesConfig, data: RunData) -> "Choices":
        """ValueError for data that cannot be read, and for a run whose model is no decoder."""
        if data.model_kind != "decoder":
            raise ValueError(
                f"the model is of kind {data.model_kind}, and only a decoder gives choices a "
                "likelihood"
            )
        asked = Asked(config.prompt, config.chat, config.system)
        limit = config.limit and config.limit + config.shots
        records = read_records(config.data, limit, config.seed or None)
        read = [_question(id, record, asked, config) for id, record in records]
        if len(read) <= config.shots:
            raise ValueError(f"shots={config.shots} leaves no question of {len(read)}; set fewer")
        examples, questions = read[: config.shots], read[config.shots :]
        return cls(questions, asked, config.delimiter, examples, config.window)

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a question."""
        for question, found in zip(self.questions, self.likelihoods(opened)):
            yield _item(question, found)

    def likelihoods(self, opened: Opened) -> list[list[Likelihood]]:
        """The likelihood of each choice of each question. ValueError without a tokenizer."""
        if opened.tokenizer is None:
            raise ValueError("the model has no tokenizer; put its tokenizer.json into the folder")
        shown = [(q.prompt, self.delimiter + q.choices[q.answer]) for q in self.examples]
        pairs = []
        for question in self.questions:
            text = self.asked.text(opened.tokenizer, shown, question.prompt)
            # A chat's template has written the beginning of the text, and where an answer begins.
            begins = opened.begins_texts and not self.asked.chat
            delimiter = "" if self.asked.chat else self.delimiter
            for choice in question.choices:
                pairs.append(encode_pair(opened.tokenizer, text, delimiter + choice, begins))
        found = iter(log_likelihoods(opened, pairs, self.window))
        return [[next(found) for _ in question.choices] for question in self.questions]


def _item(question: Question, found: Sequence[Likelihood]) -> Item:
    nats = np.array([one.nats for one in found])
    by_length = nats / [max(len(choice), 1) for choice in question.choices]
    right = nats[question.answer]
    others = np.delete(nats, question.answer)
    numbers = {
        "acc": float(np.argmax(nats) == question.answer),
        "acc_norm": float(np.argmax(by_length) == question.answer),
        # Those that are as likely and stand in front rank before it, as argmax takes them.
        "mrr": 1 / (1 + int(np.sum(nats > right) + np.sum(nats[: question.answer] == right))),
        "margin": float(right - others.max()),
        "chance": 1 / len(nats),
    }
    texts = {
        "prompt": question.prompt,
        "chosen": question.choices[int(np.argmax(nats))],
        "answer": question.choices[question.answer],
    }
    totals = {name: (value, 1.0) for name, value in numbers.items()}
    return Item(question.id, totals, texts, dict(question.slices))


def _question(id: str, record: Record, asked: Asked, config: ChoicesConfig) -> Question:
    where = f"record {id} of {config.data}"
    choices = config.choices or _choices(record, where)
    if len(choices) < 2:
        raise ValueError(f"{where} has {len(choices)} choices; give two or more")
    return Question(
        id,
        asked.question(record, where),
        tuple(choices),
        _answer(record, choices, where),
        tuple(slices_of(record, config.slices, where).items()),
    )


def _choices(record: Record, where: str) -> list[str]:
    found = next((record[name] for name in _CHOICES if name in record), None)
    if isinstance(found, dict):  # as in ARC: {"text": [...], "label": [...]}
        found = found.get("text")
    if not isinstance(found, list) or not all(isinstance(choice, str) for choice in found):
        raise ValueError(f"{where} has no list of texts under {' or '.join(_CHOICES)}")
    return found


def _answer(record: Record, choices: Sequence[str], where: str) -> int:
    """The number of the right choice, spelt as a number, a letter, a label or the choice itself."""
    name = next((name for name in _ANSWERS if record.get(name) is not None), None)
    if name is None:
        raise ValueError(f"{where} has no answer under {' or '.join(_ANSWERS)}")
    value, names = record[name], list(choices)
    for field in _CHOICES:
        if isinstance(record.get(field), dict) and value in record[field].get("label", ()):
            return record[field]["label"].index(value)
    if isinstance(value, str) and value in names:
        return names.index(value)
    if isinstance(value, str) and len(value) == 1 and value in _LETTERS[: len(names)]:
        return _LETTERS.index(value)
    number = int(value) if str(value).isdigit() else value
    if isinstance(number, int) and 0 <= number < len(names):
        return int(number)
    raise ValueError(
        f"{where}: {name}={value!r} is none of the {len(names)} choices; give its number counted "
        "from 0, its letter or its text"
    )
