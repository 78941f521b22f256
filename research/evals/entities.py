"""Labels of words, and the entities that they mark: precision, recall and F1 of CoNLL
(arXiv:cs/0306050), which the package seqeval computes."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from research.data.entities import read_entities
from research.evals.evaluation import Evaluation, Item, Opened, RunData, Totals
from research.evals.heldout_records import held_out, records_of
from research.infer.word_labels import label_words


@dataclass(frozen=True)
class EntitiesConfig:
    """data        a file of texts with tags; "" for what the run holds out
    max_tokens  longer texts are read in windows; 0 for the length of training
    overlap     tokens that two windows of a text share, at most a third of one
    limit       how many texts are read, 0 for all
    """

    data: str = ""
    max_tokens: int = 0
    overlap: int = 32
    limit: int = 0

    def __post_init__(self):
        for name in ("max_tokens", "overlap", "limit"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")


@dataclass(frozen=True)
class Tagged:
    """A text and its words: first character, last + 1 and the tag of each."""

    id: str
    text: str
    words: tuple[tuple[int, int, str], ...]


@dataclass(frozen=True)
class Entities(Evaluation):
    """The labels of words, and the entities that these mark (`research.data.entities`).

    precision, recall, f1  of entities over all texts: one is found if first word, last word and
                           label are right
    accuracy               share of words with the right label
    """

    texts: Sequence[Tagged]
    max_tokens: int = 0
    overlap: int = 32

    config = EntitiesConfig
    main = "f1"

    @classmethod
    def make(cls, config: EntitiesConfig, data: RunData) -> "Entities":
        """ValueError for data that cannot be read."""
        documents = (
            records_of(config.data, "tags", config.limit)
            if config.data
            else held_out(data, "tags", config.limit)
        )
        texts = [
            Tagged(id, one["text"], tuple(map(tuple, json.loads(one["tags"]))))
            for id, one in documents
        ]
        return cls(texts, config.max_tokens, config.overlap)

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a text. ValueError for a model without labels of tokens, and for a tag that it
        does not have."""
        if opened.tokenizer is None:
            raise ValueError("the model has no tokenizer; put its tokenizer.json into the folder")
        names = list(opened.labels) or [str(n) for n in range(opened.model.config.labels)]
        found = label_words(
            opened.model,
            opened.params,
            opened.tokenizer,
            [one.text for one in self.texts],
            self.max_tokens or opened.window,
            self.overlap,
            [[(start, stop) for start, stop, _ in one.words] for one in self.texts],
        )
        for one, words in zip(self.texts, found):
            wanted = [_named(tag, names) for _, _, tag in one.words]
            got = ["O" if word.label is None else names[word.label] for word in words]
            true, chosen = set(read_entities(wanted)), set(read_entities(got))
            totals: Totals = {
                "accuracy": (float(sum(map(str.__eq__, wanted, got))), float(len(wanted))),
                "entities/true": (float(len(true)), 1.0),
                "entities/found": (float(len(chosen)), 1.0),
                "entities/right": (float(len(true & chosen)), 1.0),
            }
            told = {"text": one.text[:500], "found": " ".join(got), "answer": " ".join(wanted)}
            yield Item(one.id, totals, told)

    def values(self, totals: Totals) -> dict[str, float]:
        """The numbers by name, as the class describes them; 0 for a share of nothing."""
        true, found, right = (totals[f"entities/{name}"][0] for name in ("true", "found", "right"))
        return {
            **super().values(totals),
            "precision": right / max(found, 1.0),
            "recall": right / max(true, 1.0),
            "f1": 2 * right / max(true + found, 1.0),
        }


def _named(tag: str, names: Sequence[str]) -> str:
    """The name of a tag, also of one that the data have as a number."""
    if tag not in names and tag.isdecimal() and int(tag) < len(names):
        return names[int(tag)]
    if tag not in names:
        raise ValueError(f"tag {tag!r} is no label of the model; there are {', '.join(names)}")
    return tag
