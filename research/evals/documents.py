"""How well a model predicts documents, each on its own: loss and bits per byte."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from research.evals.evaluation import Evaluation, Item, Opened, RunData, Totals
from research.evals.likelihood import log_likelihoods
from research.evals.perplexity import text_ids
from research.evals.records import read_records, slices_of, text_of

_NAMES = ("text", "content", "document", "passage")


@dataclass(frozen=True)
class DocumentsConfig:
    """data    a file of records, or a row of `research.evals.packaged.PACKAGED`
    text    the column of the document, "" for the one there is of "text", "content", "document"
    window  tokens that the model sees at once, 0 for those that it was trained on
    limit   how many records are read, 0 for all
    slices  columns of the data whose values are groups of items
    """

    data: str = ""
    text: str = ""
    window: int = 0
    limit: int = 0
    slices: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.data:
            raise ValueError("data is not set; set it to a file of documents")
        if self.window < 0 or self.limit < 0:
            raise ValueError(f"window={self.window} and limit={self.limit} must not be negative")


@dataclass(frozen=True)
class Document:
    """A text that is scored on its own."""

    id: str
    text: str
    slices: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Documents(Evaluation):
    """The negative log-likelihood of every token of documents, each from its beginning.

    nll_per_token    nats of a token
    perplexity       its exponential
    word_perplexity  the exponential of the nats of a word, words being what white space separates
    bits_per_byte    bits of a byte of UTF-8, which models of different tokenizers compare by

    A document longer than the window is scored window by window, each from its first token on.
    """

    documents: Sequence[Document]
    window: int = 0

    config = DocumentsConfig
    main = "bits_per_byte"
    lower_is_better = True

    @classmethod
    def make(cls, config: DocumentsConfig, data: RunData) -> "Documents":
        """ValueError for data that cannot be read or have an empty text, and a model that does not
        predict a text from its past."""
        if data.model_kind != "decoder":
            raise ValueError(
                f"the model is of kind {data.model_kind}, and only a decoder predicts a text from "
                "its past"
            )
        documents = []
        for id, record in read_records(config.data, config.limit):
            where = f"record {id} of {config.data}"
            text = text_of(record, (config.text,) if config.text else _NAMES, where)
            if not text:
                raise ValueError(f"{where} is an empty text; leave it out")
            documents.append(
                Document(id, text, tuple(slices_of(record, config.slices, where).items()))
            )
        return cls(documents, config.window)

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a document: nats over tokens, words and bytes."""
        if opened.tokenizer is None:
            raise ValueError("the model has no tokenizer; put its tokenizer.json into the folder")
        window = min(self.window or opened.window, opened.model.config.max_length)
        pairs, counts = [], []
        for document in self.documents:
            ids = text_ids(opened.tokenizer, document.text).tolist()
            # Each part follows the last token of the one before, which is all that it sees of it.
            parts = [
                (ids[at : at + 1], ids[at + 1 : at + 1 + window])
                for at in range(0, len(ids) - 1, window)
            ]
            pairs += parts
            counts.append((len(parts), len(ids) - 1))
        found = iter(log_likelihoods(opened, pairs, window))
        for document, (parts, tokens) in zip(self.documents, counts):
            nats = -sum(next(found).nats for _ in range(parts))
            sizes = {
                "nll_per_token": tokens,
                "word_perplexity": max(len(document.text.split()), 1),
            }
            totals: Totals = {name: (nats, float(size)) for name, size in sizes.items()}
            totals["bits_per_byte"] = (nats / math.log(2), float(len(document.text.encode())))
            shown = document.text[:200]
            yield Item(document.id, totals, {"text": shown}, dict(document.slices))

    def values(self, totals: Totals) -> dict[str, float]:
        """The numbers by name, as the class describes them."""
        values = super().values(totals)
        nats, words = values["nll_per_token"], values["word_perplexity"]
        # exp(709.78) is the largest float64.
        exp = lambda x: math.exp(x) if x < 709 else math.inf
        return {
            "nll_per_token": nats,
            "perplexity": exp(nats),
            "word_perplexity": exp(words),
            "bits_per_byte": values["bits_per_byte"],
        }
