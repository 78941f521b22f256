"""The records of a layout that an evaluation reads: those that a run holds out, or of a file."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from research.data.corpus import Corpus
from research.data.documents import UnreadableRecord
from research.data.files import FileDocuments
from research.downloads.cache import cache_directory
from research.evals.evaluation import RunData

Records = Iterator[tuple[str, dict[str, str]]]


def records_of(source: str, layout: str, limit: int = 0) -> list[tuple[str, dict[str, str]]]:
    """(id, fields) of the records of a file or folder, FILE or FILE?name=COLUMN, or of the first
    `limit`. ValueError for data that cannot be read, and for one unreadable record: an evaluation
    that leaves some out is another one."""
    path, _, query = source.partition("?")
    documents = FileDocuments(Path(path).expanduser(), query, cache_directory(), layout)
    found = ((one["path"], one) for one in map(documents.__getitem__, range(len(documents))))
    return list(islice(found, limit or None))


def held_out(data: RunData, layout: str, limit: int = 0) -> list[tuple[str, dict[str, str]]]:
    """(id, fields) of the records that a run holds out, or of the first `limit`; those that cannot
    be read are left out, as in training. ValueError for a checkpoint, and a run of other data."""
    if data.corpus is None or data.run_objective().reads != layout:
        raise ValueError(f"data is not set, and there are no {layout} of a run; set it to a file")
    return list(islice(_readable(data.corpus), limit or None))


def _readable(corpus: Corpus) -> Records:
    for number, (source, _) in enumerate(corpus.sources):
        for index in range(len(source.heldout)):
            try:
                one = source.heldout[index]
            except UnreadableRecord:  # counted where the records are tokenised
                continue
            yield (f"{number}:{one['path']}" if number else one["path"]), one
