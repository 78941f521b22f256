"""Data sets of tensorflow-datasets (TFDS) as documents, stored as array_record files. TensorFlow
is never imported."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets

from research.data.documents import UnreadableRecord, digest
from research.data.layouts import LAYOUTS, choose_columns, read_record

# The first of these splits that a data set has is its held-out part.
HELDOUT_SPLITS = ("validation", "valid", "val", "dev", "test")


class TfdsDocuments:
    """One split of a prepared data set.

    `fields` maps our names of fields to the features of the data set. `paths` are the names of the
    records, by default SPLIT/INDEX. `content` is a hash of the data that goes into the fingerprint;
    TFDS itself only knows sizes. Damage makes single records unreadable: array_record keeps each in
    a chunk of its own with a checksum.
    """

    def __init__(
        self,
        builder: Any,
        split: str,
        fields: dict[str, str],
        *,
        layout: str = "texts",
        content: str = "",
        paths: Sequence[str] | None = None,
    ):
        info = builder.info.splits[split]
        sizes = [
            (length, path.stat().length) for length, path in zip(info.shard_lengths, info.filepaths)
        ]
        self._layout, self.fields = layout, LAYOUTS[layout].fields
        self.fingerprint = digest(
            content, builder.info.full_name, split, repr((sizes, info.num_bytes, fields))
        )
        self._columns = fields
        self._split, self._paths = split, paths
        self._files = [str(path) for path in info.filepaths]
        self._ends = np.cumsum(info.shard_lengths)
        self._records = builder.as_data_source(split=split)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, str]:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        file, row = self._files[shard], index - (int(self._ends[shard - 1]) if shard else 0)
        try:
            record = self._records[index]
        # array_record raises RuntimeError for a bad hash.
        except (RuntimeError, ValueError, OSError) as error:
            raise UnreadableRecord(file, row, error) from None
        path = self._paths[index] if self._paths else f"{self._split}/{index}"
        return read_record(record, self._columns, self._layout, file, row) | {"path": path}

    def identities(self) -> Iterator[str]:
        """A name for each record, in order: SPLIT/INDEX."""
        return (f"{self._split}/{index}" for index in range(len(self)))


def open_tfds(
    name: str, query: str, wanted: str = "texts"
) -> tuple[TfdsDocuments, TfdsDocuments | None]:
    """(train split, the data set's own held-out split or None), downloaded and prepared first if
    that has not been done.

    `name` is spelt as in TFDS, "lm1b" or "wmt19_translate/de-en:1.0.0". The data are in TFDS's
    folder (TFDS_DATA_DIR). ValueError for an unknown data set, one that cannot be prepared, and one
    without a train split.
    """
    try:
        with quiet():
            builder = tensorflow_datasets.builder(name, file_format="array_record")
            builder.download_and_prepare()
    except Exception as error:  # preparing runs the data set's own code, which may raise anything
        raise ValueError(
            f"cannot prepare tfds:{name}: {type(error).__name__}: {_first_line(error)}"
        ) from error
    splits = builder.info.splits
    if "train" not in splits:
        raise ValueError(
            f"tfds:{name} has the splits {', '.join(splits) or '(none)'}; wanted train"
        )
    fields = choose_columns(query, tuple(builder.info.features), f"tfds:{name}?{query}", wanted)
    own = next(
        (split for split in HELDOUT_SPLITS if split in splits and len(splits[split].shard_lengths)),
        None,
    )
    train = TfdsDocuments(builder, "train", fields, layout=wanted)
    return train, own and TfdsDocuments(builder, own, fields, layout=wanted)


@contextlib.contextmanager
def quiet():
    """TFDS tells its progress on standard output, which may be somebody's JSON."""
    tensorflow_datasets.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
