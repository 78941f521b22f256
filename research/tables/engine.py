"""Tables in DuckDB, which can be asked and not changed: read-only, without files, with limits.

What a query may do is decided by the engine, never by its words: the database is opened read-only,
access to files, extensions and the network is off, and the configuration is locked.
"""

import re
import shutil
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS, ROWS, MEMORY = 10.0, 100, "1GB"
# By the end of a file's name, the engine's function that reads it.
READERS = {
    ".csv": "read_csv(?, sample_size=-1)",
    ".tsv": "read_csv(?, sample_size=-1, delim='\t')",
    ".parquet": "read_parquet(?)",
    ".json": "read_json(?)",
    ".jsonl": "read_json(?, format='newline_delimited')",
    ".ndjson": "read_json(?, format='newline_delimited')",
}
# Values of a column of texts that a model is shown, so that it spells them as they are.
_SHOWN, _SHOWN_LETTERS = 6, 24
_KINDS = {"VARCHAR": "text", "BOOLEAN": "boolean", "DATE": "date"}
_NUMBERS = ("DECIMAL", "DOUBLE", "FLOAT")


@dataclass(frozen=True)
class Found:
    """What a query found: the names of columns, rows of JSON values, and whether there are more
    rows than were asked for."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    more: bool = False

    def text(self) -> str:
        """The value alone where there is one, else a line for each row."""
        lines = [", ".join("" if cell is None else str(cell) for cell in row) for row in self.rows]
        return "\n".join([*lines, "..."] if self.more else lines)


class Tables:
    """Tables of files or of rows in memory, by name, in a database of its own that is read-only.

    `told` are lines about what was left out or read otherwise than a person may think, `folder` is
    where the database is until `close`. ValueError where no table is left, and without DuckDB.
    """

    def __init__(
        self,
        files: Sequence[str | Path] = (),
        rows: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        seconds: float = SECONDS,
    ):
        self._duckdb, self._seconds = engine(), seconds
        self.told: list[str] = []
        self.folder = Path(tempfile.mkdtemp(prefix="tables-"))
        # Also where nobody calls `close`.
        self._removed = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        place = str(self.folder / "tables.duckdb")
        with self._duckdb.connect(place) as database:
            for file in map(Path, files):
                self._read(database, file.expanduser())
            # Together, since each change that is written alone waits for the disk.
            database.execute("BEGIN")
            for name, records in (rows or {}).items():
                _insert(database, name, records)
            database.execute("COMMIT")
            self.schema = _schema(database)
        if not self.schema:
            raise ValueError("; ".join(self.told) or "there are no tables; give --table=FILE")
        limits = {"memory_limit": MEMORY, "threads": "2", "enable_external_access": "false"}
        self._database = self._duckdb.connect(
            place, read_only=True, config={**limits, "lock_configuration": "true"}
        )

    def close(self) -> None:
        """Removes the database."""
        self._database.close()
        self._removed()

    def ask(self, query: str, rows: int = ROWS) -> Found:
        """What a query finds, at most so many rows. ValueError, with the engine's reason, for one
        that is refused, is wrong or takes longer than the limit."""
        late = threading.Event()

        def _stop() -> None:
            late.set()
            self._database.interrupt()

        timer = threading.Timer(self._seconds, _stop)
        timer.start()
        try:
            self._check(query)
            cursor = self._database.execute(query)
            found = cursor.fetchmany(rows + 1)
            columns = tuple(column[0] for column in cursor.description or ())
        except self._duckdb.Error as error:
            if late.is_set():
                raise ValueError(f"it took more than {self._seconds:g} s") from None
            raise ValueError(_reason(error)) from None
        finally:
            timer.cancel()
        plain = tuple(tuple(map(_plain, row)) for row in found[:rows])
        return Found(columns, plain, len(found) > rows)

    def _check(self, query: str) -> None:
        """ValueError for anything but one query, as the engine's own parser sees it."""
        statements = self._duckdb.extract_statements(query)
        if len(statements) != 1:
            raise ValueError(f"{len(statements)} statements, wanted one query")
        # A read-only database still has temporary tables, pragmas and the like.
        kind = statements[0].type.name
        if kind != "SELECT":
            raise ValueError(f"it is of type {kind}, and only queries are answered")

    def _read(self, database: Any, file: Path) -> None:
        """Makes a table of a file, or leaves it out with a line."""
        try:
            _check_file(file)
            name = _name(file.stem, set(_names(database)))
            reader = READERS[file.suffix.lower()]
            database.execute(f'CREATE TABLE "{name}" AS SELECT * FROM {reader}', [str(file)])
            if not database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]:
                database.execute(f'DROP TABLE "{name}"')
                raise ValueError("is empty")
        except self._duckdb.Error as error:
            self.told.append(f"--table={file} is no table: {_reason(error)}")
        except ValueError as error:
            self.told.append(f"--table={file} {error}")
        else:
            self.told += _mixed(database, name)


def same_rows(found: Found, wanted: Found) -> bool:
    """Whether two queries found the same rows in any order, numbers to six digits. Names of columns
    do not count."""
    if found.more or wanted.more or len(found.rows) != len(wanted.rows):
        return False
    return sorted(map(_key, found.rows)) == sorted(map(_key, wanted.rows))


def _key(row: Sequence[Any]) -> tuple[str, ...]:
    numbers = (int, float)
    return tuple(
        f"{cell:.6g}" if isinstance(cell, numbers) and not isinstance(cell, bool) else str(cell)
        for cell in row
    )


def _check_file(file: Path) -> None:
    """ValueError for what no reader is tried on."""
    if not file.is_file():
        raise ValueError("does not exist")
    if file.suffix.lower() not in READERS:
        raise ValueError(f"is no table; there are readers of {', '.join(READERS)}")
    if not file.stat().st_size:
        raise ValueError("is empty")
    if file.suffix.lower() != ".parquet":
        with open(file, "rb") as opened:
            if b"\0" in opened.read(8192):
                raise ValueError("is binary and no table")


def _name(stem: str, taken: set[str]) -> str:
    """A name that needs no quotes in a query."""
    plain = re.sub(r"\W+", "_", stem.lower(), flags=re.ASCII).strip("_") or "table"
    plain = f"t_{plain}" if plain[0].isdigit() else plain
    numbered = (f"{plain}_{n}" for n in range(2, 10_000))
    return plain if plain not in taken else next(one for one in numbered if one not in taken)


def _names(database: Any) -> list[str]:
    return [row[0] for row in database.execute("SHOW TABLES").fetchall()]


def _insert(database: Any, name: str, records: Sequence[Mapping[str, Any]]) -> None:
    """A table of rows, whose types are those of the first one's values."""
    kinds = {str: "VARCHAR", int: "BIGINT", float: "DOUBLE"}
    columns = ", ".join(f'"{key}" {kinds[type(value)]}' for key, value in records[0].items())
    database.execute(f'CREATE TABLE "{name}" ({columns})')
    marks = ", ".join([f"({', '.join('?' * len(records[0]))})"] * len(records))
    cells = [value for record in records for value in record.values()]
    database.execute(f'INSERT INTO "{name}" VALUES {marks}', cells)


def _schema(database: Any) -> str:
    """A line for each table: "table staff: name text (Ann, Ben), age integer"."""
    lines = []
    for name in _names(database):
        parts = []
        for column, kind, *_ in database.execute(f'DESCRIBE "{name}"').fetchall():
            shown = column if re.fullmatch(r"[A-Za-z_]\w*", column) else f'"{column}"'
            parts.append(f"{shown} {_kind(kind)}{_values(database, name, column, kind)}")
        lines.append(f"table {name}: {', '.join(parts)}")
    return "\n".join(lines)


def _kind(kind: str) -> str:
    if "INT" in kind:
        return "integer"
    if kind.startswith(_NUMBERS):
        return "number"
    return _KINDS.get(kind, kind.lower())


def _values(database: Any, name: str, column: str, kind: str) -> str:
    if kind != "VARCHAR":
        return ""
    quoted = column.replace('"', '""')
    found = database.execute(
        f'SELECT "{quoted}" AS v FROM "{name}" WHERE length(v) BETWEEN 1 AND {_SHOWN_LETTERS} '
        f"GROUP BY v ORDER BY count(*) DESC, v LIMIT {_SHOWN}"
    ).fetchall()
    return f" ({', '.join(row[0] for row in found)})" if found else ""


def _mixed(database: Any, name: str) -> list[str]:
    """A line for each column of texts that are mostly numbers."""
    lines = []
    for column, kind, *_ in database.execute(f'DESCRIBE "{name}"').fetchall():
        if kind != "VARCHAR":
            continue
        quoted = column.replace('"', '""')
        numbers, every = database.execute(
            f'SELECT count(TRY_CAST("{quoted}" AS DOUBLE)), count("{quoted}") FROM "{name}"'
        ).fetchone()
        if every / 2 < numbers < every:
            lines.append(
                f"table {name}: {every - numbers} of {every} values of {column} are no numbers, so "
                "all are read as text"
            )
    return lines


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _reason(error: Exception) -> str:
    return str(error).split("\n\n")[0].replace("\n", " ").strip()


def engine() -> Any:
    """The module duckdb. ValueError where it is missing."""
    try:
        import duckdb
    except ImportError:
        raise ValueError(
            "tables are asked in DuckDB, which is missing; pip install 'duckdb' or '.[apply]'"
        ) from None
    return duckdb
