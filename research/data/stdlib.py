"""The source "stdlib": the source files of the running Python's standard library, as a TFDS data
set.

It needs no download and no TensorFlow. The library's tests are left out: they are more than half of
its bytes.
"""

import functools
import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from research.data.documents import digest, heldout_mask
from research.data.tfds import TfdsDocuments, quiet
from research.downloads.cache import Damaged, built

LEFT_OUT = frozenset({"test", "tests", "idle_test", "site-packages"})
_FORMAT = "1"  # part of the fingerprint: raise it when the data set is built in another way


def open_stdlib(
    cache_dir: Path, root: Path | None = None
) -> tuple[TfdsDocuments, TfdsDocuments, dict[str, Any]]:
    """(documents to train on, held-out documents, facts for the provenance), in path order. `root`
    is the folder of the library, by default that of the running Python.

    The prepared data set is kept under a hash of the Python version and the bytes of all files.
    ValueError for a Python that is installed without its .py files.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    contents = dict(sorted(_sources(root)))
    if len(contents) < 2:
        raise ValueError(
            f"{root} holds {len(contents)} source files; this Python comes without its library's "
            f"source"
        )
    # Part of the key beside the sources: it is in the facts that a run records.
    version = platform.python_version()
    fingerprint = digest(_FORMAT, version, *(part for pair in contents.items() for part in pair))
    # By path, so that a file stays on its side when a patch release adds others.
    split: dict[str, dict[str, bytes]] = {"train": {}, "heldout": {}}
    for path, is_heldout in zip(contents, heldout_mask(contents)):
        split["heldout" if is_heldout else "train"][path] = contents[path]
    builder = built(
        cache_dir / "stdlib" / fingerprint[:32], functools.partial(_build, split), _read
    )
    # TFDS knows the sizes of its files only, so the hash of the sources goes into the fingerprint.
    train, heldout = (
        TfdsDocuments(builder, name, {"text": "text"}, content=fingerprint, paths=list(split[name]))
        for name in split
    )
    facts = {"python": version, "files": len(contents), "bytes": sum(map(len, contents.values()))}
    return train, heldout, facts


class PythonStdlib(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The TFDS builder: one record {"text", "path"} for each file, in path order."""

    VERSION = tfds.core.Version("1.0.0")
    # nothing is downloaded; looking the checksums up needs a package that TFDS does not declare
    url_infos = None

    def __init__(self, *, contents: dict[str, dict[str, bytes]], **options: Any):
        self._contents = contents
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {"text": tfds.features.Text(), "path": tfds.features.Text()}
        )
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        return {name: self._generate_examples(files) for name, files in self._contents.items()}

    def _generate_examples(self, files: dict[str, bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
        for path, text in files.items():
            yield path, {"text": text, "path": path}


def _sources(root: Path) -> Iterator[tuple[str, bytes]]:
    """Relative path and bytes of each UTF-8 .py file under `root`."""
    for folder, folders, files in os.walk(root):
        # In place: os.walk does not enter a folder that is removed from its list.
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        for file in files:
            if file.endswith(".py"):
                path = Path(folder, file)
                try:
                    content = path.read_bytes()
                    content.decode("utf-8")
                except (OSError, UnicodeDecodeError):
                    continue
                yield path.relative_to(root).as_posix(), content


def _build(contents: dict[str, dict[str, bytes]], directory: Path) -> None:
    with quiet():
        PythonStdlib(
            contents=contents, data_dir=directory, file_format="array_record"
        ).download_and_prepare()


def _read(directory: Path) -> Any:
    """The prepared data set's builder; see cache.built for the errors."""
    directory.stat()  # FileNotFoundError for a directory that does not exist
    try:
        builder = tfds.builder_from_directory(directory / "python_stdlib" / "1.0.0")
    except Exception as error:  # TFDS promises no particular error for files it cannot parse
        raise Damaged(f"{directory} is damaged: {' '.join(str(error).split())}") from None
    missing = [
        file
        for split in builder.info.splits.values()
        for file in split.filepaths
        if not file.exists()
    ]
    if missing:
        raise Damaged(f"{missing[0]} is missing")
    return builder
