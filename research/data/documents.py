"""Documents: records of text with random access, and the rule that holds some of them out for
evaluation."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

HELDOUT_ONE_IN = 20  # about 5 % of the documents
HELDOUT_MAX = 1000  # evaluating the held-out part must stay cheap however big the corpus is


class UnreadableRecord(ValueError):
    """One record that cannot be read or decoded. The message names its file and its index in the
    file, counted from 0."""

    def __init__(self, file: str, index: int, reason: object):
        super().__init__(f"{file}, record {index}: {reason}")
        self.file, self.index = file, index


class Documents(Protocol):
    """Records of text with random access.

    `[i]` is a dict of strings: the `fields` of a layout (`research.data.layouts`), and "path", a
    name for the record. Equal `fingerprint`s mean equal content in equal order. UnreadableRecord
    for a record that cannot be read; the other records can be read all the same.
    """

    fields: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, str]: ...


class TextDocuments:
    """Texts in memory, {path: text}, as documents in the order of their paths."""

    fields = ("text",)

    def __init__(self, texts: Mapping[str, str]):
        self._texts = sorted(texts.items())
        self.fingerprint = digest(*(part for pair in self._texts for part in pair))

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> dict[str, str]:
        path, text = self._texts[index]
        return {"text": text, "path": path}

    def identities(self) -> Iterator[str]:
        """The paths, in order."""
        return (path for path, _ in self._texts)


class Subset:
    """The documents at `indices` (int [n]), in that order."""

    def __init__(self, documents: Documents, indices: np.ndarray):
        self.fields = documents.fields
        self.fingerprint = digest(documents.fingerprint, indices.astype("<i8").tobytes())
        self.rules = getattr(documents, "rules", 1)
        self._documents, self._indices = documents, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, str]:
        return self._documents[int(self._indices[index])]

    def media(self, index: int) -> list[Any]:
        """The media of a document, where the documents have some."""
        documents: Any = self._documents
        return documents.media(int(self._indices[index]))


def texts(documents: Documents) -> Iterator[str]:
    """All fields of all readable documents one after the other, such as both texts of a pair. A
    tokenizer can be trained on them."""
    for index in range(len(documents)):
        try:
            document = documents[index]
        except UnreadableRecord:  # counted where the records are tokenised
            continue
        yield from (document[field] for field in documents.fields)


def heldout_mask(ids: Iterable[str]) -> np.ndarray:
    """Bool [documents], true for documents to hold out: about one in 20, at most 1,000, at least
    one and never all.

    Held out are the documents for which the first 64 bits of sha256(id) are a multiple of 20;
    beyond 1,000 of these, the ones with the smallest hashes. Since a document's own id decides, it
    stays on its side when others are added or removed. ValueError for fewer than two documents.
    """
    hashes = np.array([int(digest(name)[:16], 16) for name in ids], dtype=np.uint64)
    if len(hashes) < 2:
        raise ValueError(
            f"{len(hashes)} document(s) where at least 2 are wanted, one to train on and one to "
            f"hold out"
        )
    # Smallest hashes first, so that the cut at HELDOUT_MAX moves as little as possible when
    # documents are added; always leaving one to train on.
    chosen = np.flatnonzero(hashes % HELDOUT_ONE_IN == 0)
    chosen = chosen[np.argsort(hashes[chosen], kind="stable")][: min(HELDOUT_MAX, len(hashes) - 1)]
    # None of a few documents may be a multiple of 20; then the smallest hash is held out.
    mask = np.zeros(len(hashes), dtype=bool)
    mask[chosen if len(chosen) else hashes.argmin()] = True
    return mask


def digest(*parts: str | bytes) -> str:
    """sha256 in hex of one part, or of several with their lengths, so that ("ab", "c") and
    ("a", "bc") differ. Strings are encoded in UTF-8."""
    if len(parts) == 1:
        return hashlib.sha256(_encoded(parts[0])).hexdigest()
    # Eight bytes of length before each part: no two lists of parts give the same stream.
    sha = hashlib.sha256()
    for part in map(_encoded, parts):
        sha.update(len(part).to_bytes(8, "big") + part)
    return sha.hexdigest()


def _encoded(part: str | bytes) -> bytes:
    # File names that are not UTF-8 reach Python with their bytes as lone surrogates.
    return part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
