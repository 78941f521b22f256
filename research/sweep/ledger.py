"""The ledger of a sweep: a folder in which each cell has its own, and ends exactly once.

    sweep.json                 the plan: factors, combinations and the cell of each
    cells/CELL/config.json     the resolved config of a cell
    cells/CELL/claims/         who works on it, see `research.sweep.claims`
    cells/CELL/run/            its run directory; output.log beside it is what the run printed
    cells/CELL/cell.json       its record, written once when it has ended
    ledger.jsonl               the records, a line each; made again from them where it is damaged

The folder may be shared by any number of machines: a disk, NFS, or a bucket that is mounted.
"""

import errno
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.files import read_json, write_json, write_text

FULL = (errno.ENOSPC, errno.EDQUOT)
STATES = ("done", "failed", "diverged", "stopped")
# What a line of the index has of a record.
INDEXED = ("cell", "state", "attempts", "levels", "seed", "metrics", "seconds", "reason")


@dataclass(frozen=True)
class Ledger:
    """The ledger in `folder`."""

    folder: Path

    @property
    def plan_file(self) -> Path:
        """The file of the plan."""
        return self.folder / "sweep.json"

    @property
    def index(self) -> Path:
        """The file with a line for each record."""
        return self.folder / "ledger.jsonl"

    def make(self) -> None:
        """Makes the folder where it is missing. ValueError where it cannot be written."""
        try:
            (self.folder / "cells").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in FULL:
                raise
            raise ValueError(
                f"--workdir={self.folder} cannot be a folder of a sweep ({error.strerror}); give "
                "one that can be made or written"
            ) from None

    def cell(self, key: str) -> Path:
        """The folder of a cell."""
        return self.folder / "cells" / key

    def ended(self, key: str) -> bool:
        """True if a cell has its record."""
        return (self.cell(key) / "cell.json").exists()

    def record(self, key: str) -> dict[str, Any] | None:
        """The record of a cell; None for one that has not ended. ValueError for a damaged one."""
        file = self.cell(key) / "cell.json"
        return _read(file) if file.exists() else None

    def records(self) -> dict[str, dict[str, Any]]:
        """All records by cell, in the order in which the cells ended. ValueError for a damaged
        one."""
        files = sorted((self.folder / "cells").glob("*/cell.json"))
        found = {file.parent.name: _read(file) for file in files}
        return dict(sorted(found.items(), key=lambda item: item[1].get("ended", "")))

    def finish(self, key: str, record: Mapping[str, Any]) -> bool:
        """Writes the record of a cell and its line of the index. False, and nothing is changed, if
        the cell has a record already: the first to finish is the one that counts."""
        file = self.cell(key) / "cell.json"
        draft = file.with_name(f".cell.{secrets.token_hex(4)}.json")
        try:
            write_json(draft, record)
            _create(draft, file)
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        # One write at the end of the file, so that the lines of two processes do not mix.
        with open(self.index, "ab", buffering=0) as index:
            index.write(_line(record).encode())
        return True

    def heal(self) -> str:
        """Makes the index again from the records where it is not what they say, as after a crash.
        Returns a line for the user, "" where all was well."""
        records = self.records()
        lines = {_line(record) for record in records.values()}
        text = self.index.read_bytes().decode(errors="replace") if self.index.exists() else ""
        if sorted(text.splitlines(keepends=True)) == sorted(lines):
            return ""
        write_text(self.index, "".join(_line(record) for record in records.values()))
        if not text:
            return ""
        what = "is torn" if not text.endswith("\n") else "does not agree with the cells"
        return f"{self.index.name} {what}; made again from {len(records)} records"

    def reopen(self, key: str) -> None:
        """Sets the record of a cell aside, so that it is run again; a diverged run begins anew,
        where a failed one goes on from its checkpoint."""
        cell = self.cell(key)
        state = (self.record(key) or {}).get("state")
        number = 1 + len(list(cell.glob("cell.*.json")))
        os.replace(cell / "cell.json", cell / f"cell.{number}.json")
        if (cell / "claims").exists():
            os.replace(cell / "claims", cell / f"claims.{number}")
        if state == "diverged" and (cell / "run").exists():
            os.replace(cell / "run", cell / f"run.{number}")
        self.heal()


def _read(file: Path) -> dict[str, Any]:
    """A record. ValueError for a damaged one, which its run can be asked for again."""
    try:
        record = read_json(file)
    except ValueError as error:
        record, why = None, f"{error}".partition("; restore")[0]
    else:
        why = f"{file} is no record"
    if isinstance(record, dict) and "state" in record:
        return record
    raise ValueError(f"{why}; delete it, and `run` makes it again from what its run has saved")


def _create(draft: Path, file: Path) -> None:
    """Gives a complete file its name. FileExistsError where the name is taken."""
    try:
        os.link(draft, file)  # which unlike a rename takes no name away
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno in FULL:
            raise
        # A mounted bucket has no links; there an exclusive creation is complete or not.
        _create_whole(file, draft.read_bytes())


def _create_whole(file: Path, data: bytes) -> None:
    """Writes a file that must not be there. What a full disk has no room for leaves none."""
    with open(file, "xb") as new:
        try:
            new.write(data)
            new.flush()
        except OSError:
            file.unlink(missing_ok=True)
            raise


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps({name: record[name] for name in INDEXED if name in record}) + "\n"
