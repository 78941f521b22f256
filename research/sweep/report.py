"""Writes the answer of a sweep: `report.html`, `report.md` and `results.csv`."""

from collections.abc import Sequence

from research.files import read_json, write_text
from research.sweep.answer import Finding, findings, headline, results_csv
from research.sweep.grid import Grid
from research.sweep.ledger import Ledger
from research.sweep.page import render
from research.sweep.plan import read_plan
from research.sweep.scaling import FILE
from research.sweep.text import markdown


def write_report(ledger: Ledger) -> list[Finding]:
    """Writes the three files from the records that there are, and returns the findings."""
    plan, records = read_plan(ledger), ledger.records()
    grid = Grid(plan, {key: records[key] for key in plan.cells if key in records})
    found = findings(grid)
    file = ledger.folder / FILE
    law = read_json(file) if file.exists() else None
    name = ledger.folder.resolve().name
    write_text(ledger.folder / "results.csv", results_csv(found))
    write_text(ledger.folder / "report.md", markdown(name, grid, found, law))
    write_text(ledger.folder / "report.html", render(name, grid, found, law))
    return found


def summary(ledger: Ledger, found: Sequence[Finding]) -> list[str]:
    """What was found, in lines for a terminal, and how many cells have failed."""
    lines = headline(found, found[0].metric) if found else ["no level can be compared yet"]
    cells, records = read_plan(ledger).cells, ledger.records()
    failed = sum(records[key]["state"] == "failed" for key in cells if key in records)
    if failed:
        lines.append(
            f"{failed} of {len(cells)} cells failed: `status` says why, `retry` runs them again"
        )
    return lines
