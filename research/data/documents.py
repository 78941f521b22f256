"""Documents: random access to the texts of one split, and the rule that holds some of them out."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import parse_qsl

import numpy as np

from research.data import conversations

HELDOUT_ONE_IN = 20  # about 5 % of the documents
HELDOUT_MAX = 1000  # evaluating the held-out part must stay cheap however big the corpus is


class UnreadableRecord(ValueError):
    """One record that cannot be read or decoded; names its file and its index there, counted from
    0."""

    def __init__(self, file: str, index: int, reason: object):
        super().__init__(f"{file}, record {index}: {reason}")
        self.file, self.index = file, index


class Documents(Protocol):
    """Texts by index. `[i]` is {"text", "path"}, {"inputs", "targets", "path"} for pairs, {"text",
    "label", "path"} for labelled texts, or {"conversation", "path"} with the messages as JSON, all
    str.

    `fields` names them but "path"; equal `fingerprint`s mean equal content in equal order.
    `[i]` raises UnreadableRecord for a record that cannot be read, and another index still can be.
    """

    fields: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, str]: ...


class TextDocuments:
    """Texts in memory, by path, in path order."""

    fields = ("text",)

    def __init__(self, texts: Mapping[str, str]):
        self._texts = sorted(texts.items())
        self.fingerprint = digest(*(part for pair in self._texts for part in pair))

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> dict[str, str]:
        path, text = self._texts[index]
        return {"text": text, "path": path}


class Subset:
    """The documents at `indices`, in that order."""

    def __init__(self, documents: Documents, indices: np.ndarray):
        self.fields = documents.fields
        self.fingerprint = digest(documents.fingerprint, indices.astype("<i8").tobytes())
        self._documents, self._indices = documents, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, str]:
        return self._documents[int(self._indices[index])]


def texts(documents: Documents) -> Iterator[str]:
    """Every text of every readable document, both of a pair: what a tokenizer is trained on."""
    for index in range(len(documents)):
        try:
            document = documents[index]
        except UnreadableRecord:  # counted where the records are tokenised
            continue
        yield from (document[field] for field in documents.fields)


def heldout_mask(ids: Iterable[str]) -> np.ndarray:
    """True for each document to hold out: where the first 64 bits of sha256(id) are a multiple of
    20, so that none changes sides when others come or go. At most 1,000, those of the smallest
    hashes; at least one, and never all.

    ValueError for fewer than two documents.
    """
    hashes = np.array([int(digest(name)[:16], 16) for name in ids], dtype=np.uint64)
    if len(hashes) < 2:
        raise ValueError(
            f"{len(hashes)} document(s) where at least 2 are wanted, one to train on and one to hold out"
        )
    chosen = np.flatnonzero(hashes % HELDOUT_ONE_IN == 0)
    chosen = chosen[np.argsort(hashes[chosen], kind="stable")][: min(HELDOUT_MAX, len(hashes) - 1)]
    mask = np.zeros(len(hashes), dtype=bool)
    mask[chosen if len(chosen) else hashes.argmin()] = True
    return mask


# What a run may want of its data, with the names that a query may give to columns.
LAYOUTS = {
    "texts": (("text",), ("inputs", "targets")),
    "labels": (("text", "label"),),
    "conversations": (("messages",), ("instruction", "output"), ("instruction", "input", "output")),
}


def choose_fields(
    query: str, columns: Sequence[str], source: str, wanted: str = "texts"
) -> dict[str, str]:
    """Which columns give what is `wanted`: from a query "text=content", "inputs=en&targets=de" or
    "messages=chat", or by the usual names where the query is empty. ValueError for a query or
    columns that do not fit."""
    fields = dict(parse_qsl(query, keep_blank_values=True))
    if not query:
        usual = [{name: name for name in layout} for layout in LAYOUTS[wanted]]
        if wanted == "conversations":
            usual = [{"messages": "messages"}, {"messages": "conversations"}, usual[2], usual[1]]
        fields = next((found for found in usual if set(found.values()) <= set(columns)), usual[-1])
    if set(fields) not in map(set, LAYOUTS[wanted]) or not set(fields.values()) <= set(columns):
        spellings = [
            "?" + "&".join(f"{name}=FIELD" for name in layout) for layout in LAYOUTS[wanted]
        ]
        raise ValueError(
            f"{source} has the fields {', '.join(sorted(columns)) or '(none)'}; name the wanted ones, as in "
            f"'{source.partition('?')[0]}{spellings[0]}'{''.join(f' or {one!r}' for one in spellings[1:])}"
        )
    return fields


def made_of(fields: Mapping[str, str]) -> tuple[str, ...]:
    """What `pick` gives for these fields."""
    return ("conversation",) if set(fields) & {"messages", "instruction"} else tuple(fields)


def pick(
    row: Mapping[str, Any], fields: Mapping[str, str], file: str, index: int
) -> dict[str, str]:
    """The wanted columns of a row as text; UnreadableRecord where one is missing, no text, not
    UTF-8, or no conversation."""
    if made_of(fields) == ("conversation",):
        try:
            text = conversations.spell(conversations.conversation(row, fields))
            return {"conversation": text.encode("utf-8").decode("utf-8")}
        except ValueError as error:  # UnicodeError is one
            raise UnreadableRecord(file, index, error) from None
    picked = {}
    for name, column in fields.items():
        value = row.get(column)
        if name == "label":
            picked[name] = _label(value, column, file, index)
            continue
        if not isinstance(value, str | bytes):
            raise UnreadableRecord(
                file, index, f"field {column!r} is {type(value).__name__}, wanted text"
            )
        try:
            # JSON can spell half a surrogate pair, which no tokenizer takes.
            picked[name] = (value.encode("utf-8") if isinstance(value, str) else value).decode(
                "utf-8"
            )
        except UnicodeError as error:
            raise UnreadableRecord(file, index, error) from None
    return picked


def _label(value: Any, column: str, file: str, index: int) -> str:
    """A class by its name or its number, which is not negative: TFDS has -1 where a test set keeps
    its labels back."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, str) and value.strip() or isinstance(value, int) and value >= 0:
        return str(int(value) if isinstance(value, bool) else value)
    raise UnreadableRecord(
        file, index, f"field {column!r} is {value!r}, wanted the name or number of a class"
    )


def digest(*parts: str | bytes) -> str:
    """sha256 in hex of one part as it is, or of several, each with its length before it."""
    if len(parts) == 1:
        return hashlib.sha256(_encoded(parts[0])).hexdigest()
    sha = hashlib.sha256()
    for part in map(_encoded, parts):
        sha.update(len(part).to_bytes(8, "big") + part)
    return sha.hexdigest()


def _encoded(part: str | bytes) -> bytes:
    return part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
