"""Classification of texts by a model with a classifier: accuracy and F1."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from research.evals.evaluation import Evaluation, Item, Opened, RunData, Totals
from research.evals.records import read_records, slices_of, text_of
from research.experiment.fields import nearest
from research.infer.classes import classify

_TEXTS, _LABELS = ("text", "sentence", "content", "review"), ("label", "class", "category")


@dataclass(frozen=True)
class ClassifiedConfig:
    """data        a file of records with a text and a label, its name or its number
    text        the column of the text, "" for "text", "sentence", "content" or "review"
    label       that of the label, "" for "label", "class" or "category"
    max_tokens  longer texts are cut, 0 for the length of training
    limit       how many records are read, 0 for all
    slices      columns of the data whose values are groups of items
    """

    data: str = ""
    text: str = ""
    label: str = ""
    max_tokens: int = 0
    limit: int = 0
    slices: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.data:
            raise ValueError("data is not set; set it to a file of texts with labels")
        if self.max_tokens < 0 or self.limit < 0:
            raise ValueError(
                f"max_tokens={self.max_tokens} and limit={self.limit} must not be negative"
            )


@dataclass(frozen=True)
class Labelled:
    """A text and the name of its class."""

    id: str
    text: str
    label: str
    slices: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Classified(Evaluation):
    """The likeliest class of each text.

    accuracy  share of texts of which it is the right one
    macro_f1  mean over the classes, among the texts' and the chosen ones, of F1
    majority  what `accuracy` is of always choosing the most frequent class
    """

    texts: Sequence[Labelled]
    max_tokens: int = 0

    config = ClassifiedConfig
    main = "accuracy"

    @classmethod
    def make(cls, config: ClassifiedConfig, data: RunData) -> "Classified":
        """ValueError for data that cannot be read."""
        texts = []
        for id, record in read_records(config.data, config.limit):
            where = f"record {id} of {config.data}"
            text = text_of(record, (config.text,) if config.text else _TEXTS, where)
            names = (config.label,) if config.label else _LABELS
            label = next((record[name] for name in names if record.get(name) is not None), None)
            if label is None:
                raise ValueError(f"{where} has no label under {' or '.join(names)}")
            # Numbers are named as in training: 1.0 is class "1".
            whole = isinstance(label, float) and label.is_integer()
            slices = tuple(slices_of(record, config.slices, where).items())
            texts.append(Labelled(id, text, str(int(label) if whole else label), slices))
        return cls(texts, config.max_tokens)

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a text. ValueError for a model without a classifier, and for a label that it does
        not have."""
        if opened.tokenizer is None:
            raise ValueError("the model has no tokenizer; put its tokenizer.json into the folder")
        count = opened.model.config.labels
        names = list(opened.labels) or [str(number) for number in range(count)]
        for one in self.texts:
            if count and one.label not in names:
                known = dict.fromkeys(names)
                raise ValueError(f"label {one.label!r} is no class; {nearest(one.label, known)}")
        longest = self.max_tokens or opened.window
        probs_NC = classify(
            opened.model, opened.params, opened.tokenizer, [one.text for one in self.texts], longest
        )
        for one, probs_C in zip(self.texts, probs_NC):
            chosen = names[int(probs_C.argmax())]
            totals: Totals = {
                "accuracy": (float(chosen == one.label), 1.0),
                f"true/{one.label}": (1.0, 1.0),
                f"chosen/{chosen}": (1.0, 1.0),
            }
            if chosen == one.label:
                totals[f"right/{chosen}"] = (1.0, 1.0)
            told = {"text": one.text[:500], "chosen": chosen, "answer": one.label}
            yield Item(one.id, totals, told, dict(one.slices))

    def values(self, totals: Totals) -> dict[str, float]:
        """The numbers by name, as the class describes them."""
        classes = {name.partition("/")[2] for name in totals if "/" in name}
        count = lambda kind, label: totals.get(f"{kind}/{label}", (0.0, 0.0))[0]
        # F1 = 2 right / (texts of the class + texts that were taken for one), never 0 / 0 here.
        f1 = [
            2 * count("right", label) / (count("true", label) + count("chosen", label))
            for label in classes
        ]
        texts = totals["accuracy"][1]
        return {
            **super().values(totals),
            "macro_f1": sum(sorted(f1)) / len(f1),
            "majority": max(count("true", label) for label in classes) / texts,
        }
