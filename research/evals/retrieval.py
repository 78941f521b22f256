"""Retrieval by embeddings: whether the passages that answer a query are the nearest ones."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from research.evals.evaluation import Evaluation, Item, Opened, RunData, Totals
from research.evals.records import Record, read_records, slices_of, text_of
from research.infer.sentences import embed

_QUERIES = ("query", "question", "anchor")
_POSITIVES = ("positive", "positives", "passage", "context", "document", "answer")
_NEGATIVES = ("negative", "negatives")
_PASSAGES = ("text", "passage", "document", "content")
_ROWS = 1024  # queries whose similarities to all passages are in memory at once


@dataclass(frozen=True)
class RetrievalConfig:
    """data      a file of records: "query", "positive" (a text or a list), perhaps "negative"
    passages  a file of further passages to search in, {"text": ...} a line, "" for none
    k         recall is computed among so many nearest passages
    limit     how many queries are read, 0 for all
    slices    columns of the data whose values are groups of items
    """

    data: str = ""
    passages: str = ""
    k: tuple[int, ...] = (1, 5, 10)
    limit: int = 0
    slices: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.data:
            raise ValueError("data is not set; set it to a file of queries and passages")
        if not self.k or min(self.k) < 1 or self.limit < 0:
            raise ValueError(f"k={self.k} must be positive, and limit={self.limit} not negative")


@dataclass(frozen=True)
class Query:
    """A query and the numbers of the passages that answer it."""

    id: str
    text: str
    right: tuple[int, ...]
    slices: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Retrieval(Evaluation):
    """The passages of highest cosine to each query, among all passages of the data.

    recall@k  the share of a query's passages among the k nearest
    mrr       mean of 1 / rank of the first right passage
    ndcg@10   discounted gain of the ten nearest, 1 where the right ones are in front
    """

    queries: Sequence[Query]
    passages: Sequence[str]
    k: Sequence[int] = (1, 5, 10)

    config = RetrievalConfig
    main = "mrr"

    @classmethod
    def make(cls, config: RetrievalConfig, data: RunData) -> "Retrieval":
        """ValueError for data that cannot be read, and for a model that is no encoder."""
        if data.model_kind != "encoder":
            raise ValueError(
                f"the model is of kind {data.model_kind}, and embeddings come from an encoder"
            )
        # Equal passages are one: which of them is found says nothing.
        passages: dict[str, int] = {}
        queries = []
        for id, record in read_records(config.data, config.limit):
            where = f"record {id} of {config.data}"
            right = [
                passages.setdefault(text, len(passages))
                for text in _texts(record, _POSITIVES, where)
            ]
            for text in _texts(record, _NEGATIVES, where, needed=False):
                passages.setdefault(text, len(passages))
            slices = tuple(slices_of(record, config.slices, where).items())
            queries.append(
                Query(id, text_of(record, _QUERIES, where), tuple(dict.fromkeys(right)), slices)
            )
        if config.passages:
            for id, record in read_records(config.passages):
                text = text_of(record, _PASSAGES, f"record {id} of {config.passages}")
                passages.setdefault(text, len(passages))
        return cls(queries, list(passages), config.k)

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a query."""
        if opened.tokenizer is None:
            raise ValueError("the model has no tokenizer; put its tokenizer.json into the folder")
        texts = [*self.passages, *(query.text for query in self.queries)]
        vectors_ND = embed(opened.model, opened.params, opened.tokenizer, texts, opened.sentences)
        # Cosines: not every checkpoint asks for vectors of length 1.
        vectors_ND = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True).clip(1e-12)
        passages_PD, queries_QD = np.split(vectors_ND, [len(self.passages)])
        for first in range(0, len(self.queries), _ROWS):
            scores_QP = queries_QD[first : first + _ROWS] @ passages_PD.T
            for query, scores_P in zip(self.queries[first : first + _ROWS], scores_QP):
                yield self._item(query, scores_P)

    def _item(self, query: Query, scores_P: np.ndarray) -> Item:
        ranks = sorted(_rank(scores_P, number) for number in query.right)
        totals: Totals = {
            f"recall@{k}": (sum(rank <= k for rank in ranks) / len(ranks), 1.0) for k in self.k
        }
        totals["mrr"] = (1 / ranks[0], 1.0)
        gain = sum(1 / math.log2(1 + rank) for rank in ranks if rank <= 10)
        best = sum(1 / math.log2(2 + place) for place in range(min(len(ranks), 10)))
        totals["ndcg@10"] = (gain / best, 1.0)
        told = {
            "query": query.text,
            "nearest": self.passages[int(scores_P.argmax())][:500],
            "answer": self.passages[query.right[0]][:500],
        }
        return Item(query.id, totals, told, dict(query.slices))


def _rank(scores_P: np.ndarray, number: int) -> int:
    """The place of a passage from 1; of equal ones, the earlier stands in front."""
    score = scores_P[number]
    return 1 + int(np.sum(scores_P > score) + np.sum(scores_P[:number] == score))


def _texts(record: Record, names: tuple[str, ...], where: str, needed: bool = True) -> list[str]:
    value = next((record[name] for name in names if record.get(name) is not None), None)
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where} has under {' or '.join(names)} no text and no list of texts")
    if needed and not texts:
        raise ValueError(f"{where} has no passage under {' or '.join(names)}")
    return texts
