"""The token store: documents are tokenised once and kept as flat memory-mapped files of ids and,
for conversations, a mask.

A folder of the cache holds ids.bin, documents.bin (tokens and bytes of each document), mask.bin and
meta.json with sizes and checksums. It is named by a hash of documents, field and tokenizer.
"""

import functools
import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from research.data.conversations import read_spelt
from research.data.documents import Documents, UnreadableRecord, digest
from research.downloads.cache import Damaged, built
from research.files import read_json, write_json

_FORMAT = "1"  # part of the key: raise it when the files below change
# Characters given to the tokenizer at a time, enough to keep its threads busy.
_CHUNK_CHARACTERS = 4 * 1024 * 1024
_BLOCK_BYTES = 64 * 1024 * 1024
_SHOWN = 5  # unreadable records that are named one by one


class Tokenizer(Protocol):
    """What is needed of a tokenizer here. Ids are below `vocab_size`; tokenizers with equal
    `fingerprint` give equal ids."""

    vocab_size: int
    fingerprint: str

    def encode_batch(self, texts: list[str]) -> Sequence[list[int] | ValueError]:
        """The ids of each text, or the error in the place of one that cannot be encoded, which is
        then an unreadable record."""


# (ids of a text, mask of the assistant's tokens or None for plain text), or the error for a
# conversation that is refused.
_Encoded = tuple[list[int], list[bool] | None] | ValueError
_Encode = Callable[[list[str]], list[_Encoded]]


class Encoder(Protocol):
    """What is needed of an encoder of conversations, such as `research.data.chat.ChatEncoder`."""

    vocab_size: int
    fingerprint: str

    def encode_batch(self, conversations: Any, tools: Any = ()) -> Any:
        """The ids and the mask of each conversation, or its error."""


class BadRecords(ValueError):
    """More records of a source are unreadable than `data.max_bad_records` allows. The message names
    the file and the index of the record that was one too many."""


class _LeftOut:
    """The errors of the records that a store leaves out. `told` has warnings of earlier stores."""

    def __init__(self, limit: int, told: set[str] | None):
        self.limit, self._told = limit, set() if told is None else told
        self.records: list[str] = []

    def leave_out(self, record: str) -> None:
        """Adds an error, with a warning unless it was told; BadRecords for one too many."""
        self.records.append(record)
        if len(self.records) > self.limit:
            raise _too_many(record, len(self.records), self.limit)
        # Each of many would hide the rest; their number is said where windows are made of the store
        if len(self.records) <= _SHOWN and record not in self._told:
            self._told.add(record)
            logging.warning("left out %s", record)


@dataclass(frozen=True, eq=False)
class TokenStore:
    """Token ids of documents. Document d is `ids[offsets[d]:offsets[d + 1]]`, without bos and eos.

    ids          uint16 or uint32 [tokens]
    offsets      int64 [documents + 1]
    n_bytes      int64 [documents], the size of each document in UTF-8
    fingerprint  equal ones mean equal arrays
    bad_records  the error message of each record that was left out
    mask         bool [tokens], true for tokens that the assistant says; None for plain text
    """

    ids: np.ndarray
    offsets: np.ndarray
    n_bytes: np.ndarray
    fingerprint: str
    bad_records: tuple[str, ...] = ()
    mask: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.n_bytes)


def tokenize(
    documents: Documents,
    tokenizer: Tokenizer,
    cache_dir: Path,
    *,
    field: str = "text",
    max_bad_records: int = 0,
    progress: Callable[[int, int], None] | None = None,
    told: set[str] | None = None,
) -> TokenStore:
    """The token store of one field of the documents; from the cache if the same documents have been
    tokenised with the same tokenizer before.

    `progress(done, documents)` is called from time to time. A damaged cache is rebuilt with a
    warning. Unreadable records are left out, each with a warning unless that is in `told`, where it
    then is: stores of the fields of one set of documents, which share it, warn of a record once.
    BadRecords, a ValueError, for more than `max_bad_records` of them; ValueError if there are no
    tokens at all.
    """
    if field not in documents.fields:
        raise ValueError(
            f"the documents have {' and '.join(documents.fields)}, wanted {field}; set "
            f"config.data.source"
        )
    # Equal keys mean equal ids: nothing else may decide them.
    key = digest(_FORMAT, documents.fingerprint, field, tokenizer.fingerprint)

    def encode(texts: list[str]) -> list[_Encoded]:
        encoded = tokenizer.encode_batch(texts)
        return [one if isinstance(one, ValueError) else (one, None) for one in encoded]

    vocab_size, bad = tokenizer.vocab_size, _LeftOut(max_bad_records, told)
    return _stored(documents, field, encode, vocab_size, key, cache_dir, bad, progress)


def tokenize_conversations(
    documents: Documents,
    encoder: Encoder,
    cache_dir: Path,
    *,
    field: str = "conversation",
    max_bad_records: int = 0,
    progress: Callable[[int, int], None] | None = None,
    told: set[str] | None = None,
) -> TokenStore:
    """`tokenize` for a field of conversations, whose store has a mask. A conversation that the chat
    template rejects counts as an unreadable record."""
    key = digest(_FORMAT, documents.fingerprint, field, encoder.fingerprint)

    def encode(texts: list[str]) -> list[_Encoded]:
        spelt = list(map(read_spelt, texts))
        return encoder.encode_batch([one[0] for one in spelt], [one[1] for one in spelt])

    vocab_size, bad = encoder.vocab_size, _LeftOut(max_bad_records, told)
    return _stored(documents, field, encode, vocab_size, key, cache_dir, bad, progress)


def _stored(
    documents: Documents,
    field: str,
    encode: _Encode,
    vocab_size: int,
    key: str,
    cache_dir: Path,
    bad: _LeftOut,
    progress,
) -> TokenStore:
    def build(directory: Path) -> None:
        _write(directory, documents, encode, vocab_size, field, bad, progress)

    # A store in the cache was made under a limit of that time, so it is checked again here.
    store = built(cache_dir / "tokens" / key[:32], build, functools.partial(_open, key=key))
    if len(store.bad_records) > bad.limit:
        raise _too_many(store.bad_records[bad.limit], len(store.bad_records), bad.limit)
    return store


def _write(
    directory: Path,
    documents: Documents,
    encode: _Encode,
    vocab_size: int,
    field: str,
    bad: _LeftOut,
    progress,
) -> None:
    # Two bytes an id are enough for most vocabularies and halve the file.
    dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
    lengths: list[int] = []
    n_bytes: list[int] = []
    checksum, mask_checksum, masked = 0, 0, False
    with open(directory / "ids.bin", "wb") as file, open(directory / "mask.bin", "wb") as mask_file:
        # One pass: ids go to disk as they come, so a corpus need not fit in memory.
        for done, texts, names in _chunks(documents, field, bad):
            for encoded, text, name in zip(encode(texts), texts, names):
                if isinstance(encoded, ValueError):
                    bad.leave_out(f"{name}: {encoded}")
                    continue
                ids, mask = encoded
                data = np.asarray(ids, dtype).tobytes()
                file.write(data)
                checksum = zlib.crc32(data, checksum)
                if mask is not None:
                    masked = True
                    data = np.asarray(mask, bool).tobytes()
                    mask_file.write(data)
                    mask_checksum = zlib.crc32(data, mask_checksum)
                lengths.append(len(ids))
                n_bytes.append(len(text.encode("utf-8")))
            if progress:
                progress(done, len(documents))
    if not sum(lengths):
        first = f", the first: {bad.records[0]}" if bad.records else ""
        unreadable = f"{len(bad.records)} of them unreadable{first}"
        raise ValueError(f"no text in {len(documents)} document(s), {unreadable}; give more data")
    # Little-endian on every machine, since caches may be shared.
    table = np.array([lengths, n_bytes], "<i8")
    table.tofile(directory / "documents.bin")
    meta = {"dtype": dtype.name, "tokens": sum(lengths), "documents": len(lengths)}
    meta |= {"bad_records": bad.records}
    meta |= {"ids_crc32": checksum, "documents_crc32": zlib.crc32(table.tobytes())}
    if masked:
        meta["mask_crc32"] = mask_checksum
    else:
        (directory / "mask.bin").unlink()
    write_json(directory / "meta.json", meta)


def _chunks(
    documents: Documents, field: str, bad: _LeftOut
) -> Iterator[tuple[int, list[str], list[str]]]:
    """Chunks of (number of documents read so far, texts, their paths). The errors of unreadable
    documents are added to `bad`; BadRecords for more than its limit."""
    texts: list[str] = []
    names: list[str] = []
    size = 0
    # Chunks are measured in characters, so that one of long documents takes no more memory.
    for index in range(len(documents)):
        try:
            document = documents[index]
        except UnreadableRecord as error:
            bad.leave_out(str(error))
            continue
        texts.append(document[field])
        names.append(document["path"])
        size += len(texts[-1])
        if size >= _CHUNK_CHARACTERS:
            yield index + 1, texts, names
            texts, names, size = [], [], 0
    yield len(documents), texts, names


def _too_many(record: str, count: int, limit: int) -> BadRecords:
    return BadRecords(
        f"{record} (unreadable record {count}, {limit} allowed); repair the file or set "
        f"config.data.max_bad_records"
    )


def _open(directory: Path, key: str) -> TokenStore:
    """The store in `directory`; Damaged where a checksum differs, see `cache.built`."""
    directory.stat()  # FileNotFoundError for a directory that is not there
    try:
        meta = read_json(directory / "meta.json")
        ids = np.memmap(
            directory / "ids.bin",
            np.dtype(meta["dtype"]).newbyteorder("<"),
            "r",
            shape=(meta["tokens"],),
        )
        table = np.fromfile(directory / "documents.bin", "<i8").reshape(2, meta["documents"])
        if (
            _crc32(ids) != meta["ids_crc32"]
            or zlib.crc32(table.tobytes()) != meta["documents_crc32"]
        ):
            raise ValueError("its checksum differs")
        # Plain texts have no mask: everything in them is a target.
        mask = None
        if "mask_crc32" in meta:
            mask = np.asarray(np.memmap(directory / "mask.bin", bool, "r", shape=(meta["tokens"],)))
            if _crc32(mask) != meta["mask_crc32"]:
                raise ValueError("its mask's checksum differs")
        offsets = np.concatenate([[0], np.cumsum(table[0])])
        # A plain array over the map: np.memmap costs microseconds at every slice.
        return TokenStore(np.asarray(ids), offsets, table[1], key, tuple(meta["bad_records"]), mask)
    except (OSError, ValueError, KeyError, TypeError) as error:
        # Whatever the damage is, the caller rebuilds the folder from the documents.
        raise Damaged(f"the token cache {directory} is damaged: {error}") from None


def _crc32(array: np.ndarray) -> int:
    # In blocks, so that the pages of a large file are not needed in memory all at once.
    data = memoryview(array).cast("B")
    checksum = 0
    for start in range(0, len(data), _BLOCK_BYTES):
        checksum = zlib.crc32(data[start : start + _BLOCK_BYTES], checksum)
    return checksum
