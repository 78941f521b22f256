"""Knowledge: the passages of documents, and those that a question is about."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from research.data.tokenizers import Tokenizer
from research.infer.sentences import SentenceSettings, embed
from research.models.model import Model
from research.retrieval.index import Index, make_index, predicted_bytes
from research.retrieval.passages import TOKENS, Passage, passages
from research.retrieval.vector_store import VectorStore
from research.tree import Tree

# Texts that are embedded before their vectors are written.
BATCH = 256
# Its vector is the first of a store: equal weights give an equal one, whatever they are called.
_PROBE = "A text by which an encoder is known again."


class Encoder(Protocol):
    """A model that makes a vector of a text, as `research.interop.load.load` opens one."""

    model: Model
    params: Tree
    tokenizer: Tokenizer | None
    sentence_settings: SentenceSettings


@dataclass(frozen=True)
class Hit:
    """A passage and the cosine of its vector and the question's."""

    passage: Passage
    similarity: float


@dataclass(frozen=True)
class Knowledge:
    """Passages that can be asked for; `index` has a row for each."""

    passages: Sequence[Passage]
    index: Index
    encoder: Encoder

    def find(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """The k passages nearest to each question, nearest first."""
        k = min(k, len(self.passages))
        scores_QK, rows_QK = self.index.search(vectors_of(self.encoder, questions), k)
        return [
            [Hit(self.passages[row], float(score)) for score, row in zip(scores, rows) if row >= 0]
            for scores, rows in zip(scores_QK, rows_QK)
        ]


def learn(
    documents: Iterable[tuple[str, str]],
    encoder: Encoder,
    name: str,
    folder: Path,
    advance: Callable[[int, int], Any] = lambda done, total: None,
) -> Knowledge:
    """The knowledge of documents, each (source, text).

    Vectors are kept in `folder`, by the text of a passage: passages that are there are not embedded
    again, whether the command was stopped or a document has changed. `name` is the encoder's, and
    `advance(done, total)` is called as passages are embedded. ValueError for documents without a
    passage, an encoder without a tokenizer, and a folder with the vectors of another one.
    """
    if encoder.tokenizer is None:
        raise ValueError(f"{name} has no tokenizer; put its tokenizer.json into the folder")
    tokenizer, room = encoder.tokenizer, min(TOKENS, encoder.sentence_settings.max_tokens - 2)
    found = [
        passage
        for source, text in documents
        for passage in passages(source, text, lambda part: len(tokenizer.encode(part)), room)
    ]
    if not found:
        raise ValueError("the documents have no passage; give some with text")
    store = VectorStore(folder, encoder.model.config.d_model, name)
    _check_probe(store, encoder, name)
    texts = list(dict.fromkeys(passage.text for passage in found))
    missing = [text for text, row in zip(texts, store.rows(texts)) if row < 0]
    for first in range(0, len(missing), BATCH):
        part = missing[first : first + BATCH]
        store.add(part, vectors_of(encoder, part))
        advance(first + len(part), len(missing))
    return Knowledge(found, _index(store, found, folder), encoder)


def vectors_of(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """A vector of length 1 for each text, float32 [texts, D]. ValueError for a model that is no
    encoder."""
    vectors_ND = embed(
        encoder.model, encoder.params, encoder.tokenizer, texts, encoder.sentence_settings
    )
    # Not every checkpoint asks for vectors of length 1, whose products are their cosines.
    return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True).clip(1e-12)


def _check_probe(store: VectorStore, encoder: Encoder, name: str) -> None:
    """ValueError where the store's vectors are of other weights under the same name."""
    probe_1D = vectors_of(encoder, [_PROBE])
    if not len(store):
        store.add([_PROBE], probe_1D)
    # Another machine, or a batch of another width, adds in another order.
    elif not np.allclose(store.vectors_from().take([0]), probe_1D, atol=1e-3):
        raise ValueError(
            f"--index={store.folder} has vectors of other weights than those of {name}; give "
            "another folder"
        )


def _index(store: VectorStore, found: Sequence[Passage], folder: Path) -> Index:
    rows = store.rows([passage.text for passage in found])
    size = predicted_bytes(len(rows), store.size)
    if np.array_equal(rows, np.arange(1, len(store))):
        index = make_index(store.vectors_from(1), folder / "lists.faiss")
    else:
        # Some passages stand twice, or are of documents that are gone: the rows are copied.
        index = make_index(store.vectors_from().take(rows))
        size = max(size, 4 * len(rows) * store.size)
    print(f"{len(rows):,} passages; their index takes {size / 1e6:,.0f} MB", file=sys.stderr)
    return index
