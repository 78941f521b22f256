"""Writes the answer of a sweep: `report.html`, `report.md` and `results.csv`."""

from research.files import read_json, write_text
from research.sweep.answer import Finding, findings, results_csv
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
