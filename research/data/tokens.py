"""The token store: a split tokenised once, its ids in one flat memory-mapped file."""

import functools
import logging
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from research.data.cache import Damaged, built
from research.data.documents import Documents, UnreadableRecord, digest
from research.files import read_json, write_json

_FORMAT = "1"  # part of the key: raise it when the files below change
_CHUNK_CHARACTERS = 4 * 1024 * 1024  # given to the tokenizer at a time, enough to keep its threads busy
_BLOCK_BYTES = 64 * 1024 * 1024


class Tokenizer(Protocol):
    """What is asked of a tokenizer here: ids below vocab_size, all decided by what the fingerprint hashes."""

    vocab_size: int
    fingerprint: str

    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...


class BadRecords(ValueError):
    """More records of a source could not be read than were allowed; names the file and index of the last straw."""


@dataclass(frozen=True, eq=False)
class TokenStore:
    """Document d is `ids[offsets[d]:offsets[d + 1]]`, without special tokens, and was `n_bytes[d]` bytes of UTF-8.

    ids uint16 or uint32 [tokens], offsets int64 [documents + 1], n_bytes int64 [documents]. `bad_records` are the
    messages of those left out. Equal `fingerprint`s mean equal arrays.
    """

    ids: np.ndarray
    offsets: np.ndarray
    n_bytes: np.ndarray
    fingerprint: str
    bad_records: tuple[str, ...] = ()

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
) -> TokenStore:
    """The tokens of one field of the documents, from the cache if these documents met this tokenizer before.

    `progress(done, documents)` is called now and then while tokenising. A damaged cache is made again with a warning.
    BadRecords, a ValueError, for more than `max_bad_records` unreadable records; ValueError if no token comes out.
    """
    if field not in documents.fields:
        raise ValueError(f"the documents have {' and '.join(documents.fields)}, wanted {field}; set config.data.source")
    key = digest(_FORMAT, documents.fingerprint, field, tokenizer.fingerprint)

    def build(directory: Path) -> None:
        _write(directory, documents, tokenizer, field, max_bad_records, progress)

    store = built(cache_dir / "tokens" / key[:32], build, functools.partial(_open, key=key))
    if len(store.bad_records) > max_bad_records:
        raise _too_many(store.bad_records[max_bad_records], len(store.bad_records), max_bad_records)
    return store


def _write(directory: Path, documents: Documents, tokenizer: Tokenizer, field: str, max_bad: int, progress) -> None:
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    lengths: list[int] = []
    n_bytes: list[int] = []
    bad: list[str] = []
    checksum = 0
    with open(directory / "ids.bin", "wb") as file:
        for done, texts in _chunks(documents, field, bad, max_bad):
            encoded = tokenizer.encode_batch(texts)
            data = b"".join(np.asarray(ids, dtype).tobytes() for ids in encoded)
            file.write(data)
            checksum = zlib.crc32(data, checksum)
            lengths += map(len, encoded)
            n_bytes += (len(text.encode("utf-8")) for text in texts)
            if progress:
                progress(done, len(documents))
    if not sum(lengths):
        raise ValueError(f"no text in {len(documents)} document(s), {len(bad)} of them unreadable; give more data")
    table = np.array([lengths, n_bytes], "<i8")
    table.tofile(directory / "documents.bin")
    meta = {"dtype": dtype.name, "tokens": sum(lengths), "documents": len(lengths), "bad_records": bad}
    write_json(directory / "meta.json", meta | {"ids_crc32": checksum, "documents_crc32": zlib.crc32(table.tobytes())})


def _chunks(documents: Documents, field: str, bad: list[str], max_bad: int) -> Iterator[tuple[int, list[str]]]:
    """Lists of texts with the number of documents behind them; unreadable ones go to `bad` until it is too long."""
    texts: list[str] = []
    size = 0
    for index in range(len(documents)):
        try:
            texts.append(documents[index][field])
        except UnreadableRecord as error:
            bad.append(str(error))
            if len(bad) > max_bad:
                raise _too_many(bad[-1], len(bad), max_bad) from None
            logging.warning("left out %s", error)
            continue
        size += len(texts[-1])
        if size >= _CHUNK_CHARACTERS:
            yield index + 1, texts
            texts, size = [], 0
    yield len(documents), texts


def _too_many(record: str, count: int, limit: int) -> BadRecords:
    return BadRecords(
        f"{record} (unreadable record {count}, {limit} allowed); repair the file or set config.data.max_bad_records"
    )


def _open(directory: Path, key: str) -> TokenStore:
    """See cache.built for the errors."""
    directory.stat()
    try:
        meta = read_json(directory / "meta.json")
        ids = np.memmap(directory / "ids.bin", np.dtype(meta["dtype"]).newbyteorder("<"), "r", shape=(meta["tokens"],))
        table = np.fromfile(directory / "documents.bin", "<i8").reshape(2, meta["documents"])
        if _crc32(ids) != meta["ids_crc32"] or zlib.crc32(table.tobytes()) != meta["documents_crc32"]:
            raise ValueError("its checksum differs")
        offsets = np.concatenate([[0], np.cumsum(table[0])])
        # A plain array over the map: np.memmap costs microseconds at every slice.
        return TokenStore(np.asarray(ids), offsets, table[1], key, tuple(meta["bad_records"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"the token cache {directory} is damaged: {error}") from None


def _crc32(array: np.ndarray) -> int:
    data = memoryview(array).cast("B")
    checksum = 0
    for start in range(0, len(data), _BLOCK_BYTES):
        checksum = zlib.crc32(data[start : start + _BLOCK_BYTES], checksum)
    return checksum
