"""The answer of a sweep in words: the tables of the report, and `report.md`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from research.sweep.answer import Finding, headline
from research.sweep.grid import Grid
from research.sweep.scaling import sentences
from research.training.progress import short_number

METHOD = (
    "Differences are level minus baseline, paired by seed; in a product of factors they are means "
    "over the combinations of the others. Intervals are 95% by Student's t over seeds. Verdicts "
    "need six seeds and a p-value below 0.05 after Holm's correction for the number of levels. "
    "The sign-flip test, exact and of no assumed distribution, stands beside it as a check. What "
    "is detectable is the difference that so many seeds find with a probability of 80%. A run that "
    "diverged counts as the worst value of the sweep. At equal FLOPs or tokens, curves are read "
    "where the shorter one ends, between evaluations on a straight line; a schedule may not have "
    "ended there. Levels with runs that successive halving stopped have no verdict at full length "
    "and are compared at equal tokens, those of the rung; what went on was chosen by its values "
    "there."
)
FOOTER = "Move over a point or a curve to read its values."
HEAD = (
    "factor", "level", "verdict", "difference", "95% interval", "p (Holm)", "p (sign flip)",
    "detectable", "seeds", "FLOPs", "time", "per cost",
)  # fmt: skip
Table = tuple[Sequence[str], list[Sequence[str]]]  # the names of the columns, and the rows


def cells(one: Finding) -> tuple[str, ...]:
    """The texts of a finding, in the order of `HEAD`."""
    c, sample = one.comparison, one.sample
    return (
        "combination" if one.combines else one.factor,
        one.level,
        c.verdict,
        f"{c.difference:+.3g}" if c.seeds else "",
        f"{c.low:+.3g} to {c.high:+.3g}" if c.seeds else "",
        f"{c.corrected:.2g}" if c.seeds else "",
        f"{c.sign_flip:.2g}" if c.seeds else "",
        f"{c.detectable:.2g}" if c.seeds else "",
        f"{c.seeds}",
        _times(sample.cost),
        _times(sample.seconds),
        "" if one.per_cost is None else f"{one.per_cost:+.3g}",
    )


def run_rows(grid: Grid) -> Table:
    """A row for each run that has ended: its cell, levels, seed, state and metrics, what it cost,
    and the fields in which its config differs from the sweep's."""
    metrics = list(grid.plan.metrics)
    head = ("cell", "levels", "seed", "state", *metrics, "FLOPs", "seconds", "attempts", "changes")
    rows = []
    for key, record in grid.records.items():
        values = [record.get("metrics", {}).get(name) for name in metrics]
        rows.append(
            (
                key,
                spelt(record["levels"]),
                f"{record['seed']}",
                record["state"],
                *("" if value is None else f"{value:.5g}" for value in values),
                short_number(record["flops"]) if record.get("flops") else "",
                f"{record.get('seconds') or 0:.0f}",
                f"{record['attempts']}",
                spelt({name: json.dumps(one) for name, one in record["settings"].items()}),
            )
        )
    return head, rows


def failures(grid: Grid) -> Table:
    """A row for each run that failed or diverged, with its reason."""
    rows = [
        (record["state"], spelt(record["levels"]), f"{record['seed']}", record["reason"])
        for record in grid.records.values()
        if record["state"] != "done"
    ]
    return ("state", "levels", "seed", "reason"), rows


def counts(grid: Grid) -> str:
    """How many cells there are, and what became of them."""
    states = [record["state"] for record in grid.records.values()]
    words = [f"{len(grid.plan.cells)} cells", f"{states.count('done')} done"]
    words += [
        f"{states.count(one)} {one}" for one in ("diverged", "failed", "stopped") if one in states
    ]
    left = len(grid.plan.cells) - len(states)
    codes = {record.get("prints", {}).get("code") for record in grid.records.values()}
    words += [f"{left} to run"] if left else []
    return ", ".join(words + [f"of {len(codes)} versions of the code"] * (len(codes) > 1))


def markdown(
    name: str, grid: Grid, found: Sequence[Finding], law: Mapping[str, Any] | None = None
) -> str:
    """The text of `report.md`."""
    plan = grid.plan
    lines = [f"# {name}", "", f"`{plan.config}`; {counts(grid)}.", "", METHOD, ""]
    for number, metric in enumerate(dict.fromkeys(one.metric for one in found)):
        better = plan.metrics.get(metric)
        lines += [f"## {metric}" + (f", {better} is better" if better else ""), ""]
        if not number:
            lines += [f"- {words}" for words in headline(found, metric)] + [""]
        lines += [*_table(HEAD, [cells(one) for one in found if one.metric == metric]), ""]
    if law:
        lines += ["## Scaling law", "", *(f"- {words}" for words in sentences(law)), ""]
    head, rows = failures(grid)
    if rows:
        lines += ["## Runs that did not end well", "", *_table(head, rows), ""]
    return "\n".join([*lines, "## Runs", "", *_table(*run_rows(grid))]) + "\n"


def spelt(levels: Mapping[str, str]) -> str:
    """ "rank=8, method=lora"."""
    return ", ".join(f"{name}={level}" for name, level in levels.items())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return lines + ["| " + " | ".join(one.replace("|", "/") for one in row) + " |" for row in rows]


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3g} x"
