"""Writes the answer of a sweep: `report.html`, `report.md` and `results.csv`."""

from collections.abc import Sequence

from research.files import write_text
from research.sweep.answer import Finding, findings, headline, results_csv
from research.sweep.grid import Grid
from research.sweep.ledger import Ledger
from research.sweep.plan import read_plan

METHOD = (
    "Differences are level minus baseline, paired by seed; intervals are 95% by Student's t over "
    "seeds. Verdicts need six seeds and a p-value below 0.05 after Holm's correction for the "
    "number of levels. The minimum detectable effect is found with a probability of 80%. A run "
    "that diverged counts as the worst value of the sweep."
)
HEAD = (
    "factor", "level", "difference", "95% interval", "p (Holm)", "detectable", "seeds", "FLOPs",
    "verdict",
)  # fmt: skip


def write_report(ledger: Ledger) -> list[Finding]:
    """Writes the three files from the records that there are, and returns the findings."""
    plan, records = read_plan(ledger), ledger.records()
    grid = Grid(plan, {key: records[key] for key in plan.cells if key in records})
    found = findings(plan, grid.records)
    write_text(ledger.folder / "results.csv", results_csv(found))
    write_text(ledger.folder / "report.md", markdown(ledger.folder.name, grid, found))
    return found


def markdown(name: str, grid: Grid, found: Sequence[Finding]) -> str:
    """The text of `report.md`."""
    plan = grid.plan
    lines = [f"# {name}", "", f"`{plan.config}`; {counts(grid)}.", "", METHOD, ""]
    for number, metric in enumerate(plan.metrics):
        lines += [f"## {metric}, {plan.metrics[metric]} is better", ""]
        if not number:
            lines += [f"- {words}" for words in headline(found, metric)] + [""]
        lines += [*table([one for one in found if one.metric == metric]), ""]
    return "\n".join(lines + _endings(grid)) + "\n"


def table(found: Sequence[Finding]) -> list[str]:
    """The lines of a table of findings in Markdown."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
    return lines + ["| " + " | ".join(cells(one)) + " |" for one in found]


def cells(one: Finding) -> tuple[str, ...]:
    """The texts of a finding, in the order of `HEAD`."""
    c, cost = one.comparison, one.sample.cost
    return (
        one.factor,
        one.level,
        f"{c.difference:+.4g}",
        f"{c.low:+.4g} to {c.high:+.4g}",
        f"{c.corrected:.3g}",
        f"{c.detectable:.2g}",
        f"{c.seeds}",
        "" if cost is None else f"{cost:.3g} x",
        c.verdict,
    )


def counts(grid: Grid) -> str:
    """How many cells there are, and what became of them."""
    states = [record["state"] for record in grid.records.values()]
    words = [f"{len(grid.plan.cells)} cells", f"{states.count('done')} done"]
    words += [f"{states.count(one)} {one}" for one in ("diverged", "failed") if one in states]
    left = len(grid.plan.cells) - len(states)
    return ", ".join([*words, f"{left} to run"] if left else words)


def _endings(grid: Grid) -> list[str]:
    """The runs that failed or diverged, with their reasons."""
    bad = [record for record in grid.records.values() if record["state"] != "done"]
    if not bad:
        return []
    lines = ["## Runs that did not end well", ""]
    for record in bad:
        words = ", ".join(f"{name}={level}" for name, level in record["levels"].items())
        lines.append(f"- {record['state']}: {words}, seed {record['seed']}: {record['reason']}")
    return lines
