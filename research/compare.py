"""Compares runs: python -m research.compare runs/a runs/b --json

Prints the last metrics of the runs side by side, the numbers of their evaluations with how the
further runs differ from the first, item by item with 95% intervals, and the fields of their configs
that differ. compare.html, in the folder of the last run or at --output, draws it. --json prints
{"runs": {NAME: {"metrics", "evaluations"}}, "config", "against", "differences"}.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from research import command

OUTPUT = flags.DEFINE_string(
    "output", None, "the page to write; by default compare.html in the last run's folder"
)
JSON = flags.DEFINE_bool("json", False, "print one JSON value on standard output")


def main(arguments: list[str]) -> int:
    """Reads the runs and compares them; the exit code."""
    # Here, so that --help needs no more than flags.
    from research.evals.comparison import compare, open_runs
    from research.evals.comparison_page import comparison_page
    from research.files import write_text

    runs = open_runs(arguments)
    found = compare(runs)
    target = Path(OUTPUT.value) if OUTPUT.value else runs[-1].folder / "compare.html"
    write_text(target, comparison_page(runs))
    print(json.dumps(found) if JSON.value else table(found, target))
    return command.DONE


def table(found: Mapping[str, Any], page: Path) -> str:
    """The comparison as lines of text."""
    names = list(found["runs"])
    metrics = [one["metrics"] for one in found["runs"].values()]
    rows = [["", *names]]
    rows += [
        [name, *(_shown(one.get(name)) for one in metrics)]
        for name in dict.fromkeys(name for one in metrics for name in one)
    ]
    rows += [[name, *(_text(each[run]) for run in names)] for name, each in found["config"].items()]
    lines = _aligned(rows)
    for run, evaluations in found["differences"].items():
        for name, each in evaluations.items():
            for metric, one in each.items():
                ends = f"[{_shown(one['low'])}, {_shown(one['high'])}]"
                lines.append(
                    f"{run} - {found['against']}: {name}/{metric} {_shown(one['value'])} {ends} "
                    f"n={one['n']:,} {one['interval']}"
                )
    return "\n".join([*lines, f"page: {page}"])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        ).rstrip()
        for row in rows
    ]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


if __name__ == "__main__":
    command.run(main)
