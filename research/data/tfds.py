"""Data sets of tensorflow-datasets (TFDS) as documents, stored as array_record files. TensorFlow
is never imported."""

import contextlib
import functools
import importlib
import io
import pkgutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets

from research.data.content import content_digest
from research.data.documents import UnreadableRecord, digest
from research.data.layouts import LAYOUTS, OtherColumns, choose_columns, read_record

# The first of these splits that a data set has is its held-out part.
HELDOUT_SPLITS = ("validation", "valid", "val", "dev", "test")
_NOT_BUILDERS = frozenset(
    ("core", "testing", "scripts", "proto", "url_checksums", "datasets", "dataset_collections")
)


class TfdsDocuments:
    """One split of a prepared data set.

    `fields` maps our names of fields to the features of the data set. `paths` are the names of the
    records, by default SPLIT/INDEX. `content` is a hash of the data that goes into the fingerprint;
    TFDS itself only knows sizes. `rules` are those of `research.data.files.FileDocuments`. Damage
    makes single records unreadable: array_record keeps each in a chunk of its own with a checksum.
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
        rules: int = 1,
    ):
        self.rules = rules
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
        # Which file of the split, for the message of a record that cannot be read.
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
    name: str, query: str, wanted: str, cache_dir: Path, rules: int = 2
) -> tuple[TfdsDocuments, TfdsDocuments | None]:
    """(train split, the data set's own held-out split or None), downloaded and prepared first if
    that has not been done.

    `name` is spelt as in TFDS, "lm1b" or "wmt19_translate/de-en:1.0.0". The data are in TFDS's
    folder (TFDS_DATA_DIR). Without a query, and where the usual names do not fit, the columns are
    those that the data set calls its input and target, such as article and highlights. `rules` are
    1 for a run that began when the bytes of the data were no part of the fingerprint. ValueError
    for an unknown data set, one that cannot be prepared, and one without a train split.
    """
    builder = find_builder(name)
    try:
        with quiet():
            builder.download_and_prepare()
    except Exception as error:  # preparing runs the data set's own code, which may raise anything
        raise _cannot(name, error) from error
    # Whatever the preparation has found: only now are the numbers of records known.
    splits = builder.info.splits
    if "train" not in splits:
        raise ValueError(
            f"tfds:{name} has the splits {', '.join(splits) or '(none)'}; wanted train"
        )
    columns = tuple(builder.info.features)
    query = query or _supervised(builder.info.supervised_keys, columns, wanted)
    fields = choose_columns(query, columns, f"tfds:{name}?{query}", wanted)
    own = next(
        (split for split in HELDOUT_SPLITS if split in splits and len(splits[split].shard_lengths)),
        None,
    )

    # By file name and not by path: a copy of the data elsewhere is the same data.
    def documents(split: str) -> TfdsDocuments:
        files = [(str(path), path.name) for path in splits[split].filepaths]
        content = content_digest(files, cache_dir, sampled=True) if rules > 1 else ""
        return TfdsDocuments(builder, split, fields, layout=wanted, rules=rules, content=content)

    return documents("train"), documents(own) if own else None


def find_builder(name: str) -> Any:
    """The TFDS builder of a name such as "c4/en" or "wmt19_translate/de-en:1.0.0", which prepares
    array_record files. ValueError for an unknown name, and a builder that cannot be made."""
    _register_all()
    try:
        with quiet():
            return tensorflow_datasets.builder(name, file_format="array_record")
    except Exception as error:
        raise _cannot(name, error) from error


@functools.cache
def _register_all() -> None:
    """Imports the packages of data sets that TFDS itself leaves out, so that their names are known:
    c4 and wikipedia are in `text`, wmt19_translate in `translate`, and so on."""
    for package in pkgutil.iter_modules(tensorflow_datasets.__path__):
        # `core` and the like have no builders, those in `datasets` are found by name.
        if package.ispkg and package.name not in _NOT_BUILDERS:
            # A few need packages that are not here, such as h5py; nobody may want them.
            with contextlib.suppress(ImportError), quiet():
                importlib.import_module(f"tensorflow_datasets.{package.name}")


def _supervised(keys: Any, columns: Sequence[str], layout: str) -> str:
    """The query for the (input, target) columns of a data set, "" where they are of no use."""
    names = LAYOUTS[layout].columns[0]
    try:
        choose_columns("", columns, "", layout)
    except OtherColumns:
        if keys and len(keys) == len(names) == 2 and set(map(str, keys)) <= set(columns):
            return "&".join(f"{name}={key}" for name, key in zip(names, keys))
    return ""


def _cannot(name: str, error: Exception) -> ValueError:
    line = f"cannot prepare tfds:{name}: {type(error).__name__}: {_first_line(error)}"
    if "tensorflow" in str(error) and isinstance(error, ImportError):
        line += "; its builder needs TensorFlow, prepare it where that is and set TFDS_DATA_DIR"
    return ValueError(line)


@contextlib.contextmanager
def quiet():
    """TFDS tells its progress on standard output, which may be somebody's JSON."""
    tensorflow_datasets.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
