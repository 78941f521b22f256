"""Nearest vectors: exactly for a few, and in lists around centres for many."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from research.retrieval.vector_file import VectorFile

# A product with so many vectors of 384 takes some 10 ms on two cores.
EXACT_UP_TO = 50_000
_BLOCK = 16_384  # vectors read from the disk at once
_SAMPLED = 64  # vectors for each centre that the centres are learnt from
_PROBED = 16  # one in so many lists is looked at
_RESCORED = 8  # times k candidates are compared exactly


class Index(Protocol):
    """What finds the nearest of some vectors of length 1."""

    def search(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(cosines float32 [Q, k], rows int64 [Q, k]) of the k nearest, nearest first. k is at most
        the number of vectors."""


@dataclass(frozen=True)
class Exact:
    """Compares with all vectors."""

    vectors: np.ndarray | VectorFile

    def search(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Index`; of equal ones the earlier row first."""
        best = None
        # Block by block: the scores of all vectors at once would outgrow the vectors.
        for first, block_ND in _blocks(self.vectors):
            scores_QN = queries_QD @ block_ND.T
            rows_QN = np.broadcast_to(np.arange(first, first + len(block_ND)), scores_QN.shape)
            if best is not None:
                scores_QN = np.concatenate([best[0], scores_QN], 1)
                rows_QN = np.concatenate([best[1], rows_QN], 1)
            best = _top(scores_QN, rows_QN, k)
        if best is None:
            return np.zeros((len(queries_QD), 0), np.float32), np.zeros((len(queries_QD), 0), int)
        return best


@dataclass(frozen=True)
class Clustered:
    """Vectors in lists, each around a centre of k-means; a query looks at the lists of the nearest
    centres (inverted files: Jegou et al. 2011, section 4). Codes of 8 bits a number are compared,
    and of the best candidates the vectors themselves, which stay on the disk."""

    vectors: np.ndarray | VectorFile
    lists: Any  # faiss.IndexIVFScalarQuantizer

    def search(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Index`, of which a share is found."""
        queries_QD = np.ascontiguousarray(queries_QD, np.float32)
        candidates = min(_RESCORED * k, len(self.vectors))
        _, rows_QN = self.lists.search(queries_QD, candidates)
        scores_QN = np.full(rows_QN.shape, -np.inf, np.float32)
        for query_D, rows_N, scores_N in zip(queries_QD, rows_QN, scores_QN):
            there_N = rows_N >= 0  # lists that are looked at may hold fewer
            scores_N[there_N] = _take(self.vectors, rows_N[there_N]) @ query_D
        return _top(scores_QN, rows_QN, k)


def make_index(vectors: np.ndarray | VectorFile, file: Path | None = None) -> Index:
    """The index of vectors of length 1, float32 [N, D]: exact and in memory up to `EXACT_UP_TO`. A
    larger one is kept in `file`, if any, and read from there where it has as many vectors.
    ValueError for so many without faiss."""
    count = len(vectors)
    if count <= EXACT_UP_TO:
        return Exact(vectors.block(0, count) if isinstance(vectors, VectorFile) else vectors)
    faiss = _faiss(count)
    if file is not None and file.is_file():
        lists = faiss.read_index(str(file))
        if lists.ntotal == count:
            return Clustered(vectors, _probing(lists))
    lists = _build(faiss, vectors)
    if file is not None:
        part = file.with_suffix(".part")
        faiss.write_index(lists, str(part))
        part.replace(file)
    return Clustered(vectors, _probing(lists))


def list_count(count: int) -> int:
    """Lists for so many vectors: the power of two nearest to the square root, so that finding the
    lists takes about as long as reading one."""
    return 2 ** round(math.log2(math.sqrt(count)))


def predicted_bytes(count: int, size: int) -> int:
    """Most memory in bytes that building and asking an index of so many vectors takes. Of a few
    these are the vectors. Of many, which stay on the disk, a code of `size` bytes and a number of 8
    for each, in lists that grow to at most twice what is in them; centres; the sample that they are
    learnt from, twice, since faiss copies it; and two blocks of vectors."""
    if count <= EXACT_UP_TO:
        return 4 * count * size
    lists = list_count(count)
    sample = 2 * min(_SAMPLED * lists, count)
    return 2 * count * (size + 8) + 4 * size * (lists + sample + 2 * _BLOCK)


def _build(faiss: Any, vectors: np.ndarray | VectorFile) -> Any:
    count, size = len(vectors), next(_blocks(vectors))[1].shape[1]
    centres = list_count(count)
    flat = faiss.IndexFlatIP(size)
    lists = faiss.IndexIVFScalarQuantizer(
        flat, size, centres, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    # In order, since a file is read from the disk in order.
    chosen = np.sort(np.random.default_rng(0).permutation(count)[: _SAMPLED * centres])
    lists.train(_take(vectors, chosen))
    for _, block_ND in _blocks(vectors):
        lists.add(block_ND)
    return lists


def _probing(lists: Any) -> Any:
    lists.nprobe = max(1, lists.nlist // _PROBED)
    return lists


def _blocks(vectors: np.ndarray | VectorFile) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, some rows in memory)."""
    for first in range(0, len(vectors), _BLOCK):
        if isinstance(vectors, VectorFile):
            yield first, vectors.block(first, first + _BLOCK)
        else:
            yield first, np.ascontiguousarray(vectors[first : first + _BLOCK], np.float32)


def _take(vectors: np.ndarray | VectorFile, rows_N: np.ndarray) -> np.ndarray:
    return vectors.take(rows_N) if isinstance(vectors, VectorFile) else vectors[rows_N]


def _top(scores_QN: np.ndarray, rows_QN: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    k = min(k, scores_QN.shape[1])
    # Stable, and rows stand in order: of equal scores the earlier row comes first.
    order_QN = np.argsort(-scores_QN, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores_QN, order_QN, 1), np.take_along_axis(rows_QN, order_QN, 1)


def _faiss(count: int) -> Any:
    try:
        import faiss
    except ImportError:
        raise ValueError(
            f"{count:,} passages want an index of faiss, and up to {EXACT_UP_TO:,} go without; "
            "pip install 'faiss-cpu' or '.[apply]'"
        ) from None
    return faiss
