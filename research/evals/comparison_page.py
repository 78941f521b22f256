"""A page on several runs: their curves in one figure each, evaluations, configs."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from research.evals.comparison import Run, config_differences, paired
from research.training.page import page
from research.training.plot import COLOURS, curve_svg
from research.training.report_evals import mood
from research.training.whiskers import measured, shown, whisker_table

# (name in a row, title, unit), in this order; other evaluated numbers follow.
_CURVES = (
    ("loss", "Training loss", "nats per target"),
    ("eval/loss", "Held-out loss", "nats per target"),
    ("eval/bits_per_byte", "Bits per byte", "held out"),
    ("grad_norm", "Gradient norm", "before clipping"),
    ("learning_rate", "Learning rate", ""),
    ("tokens_per_second", "Throughput", "tokens per second"),
)
_OWN = ("eval/gzip_bits_per_byte",)  # of the data and no curve


def comparison_page(runs: Sequence[Run]) -> str:
    """The page as HTML, self-contained and without scripts."""
    names = " · ".join(run.name for run in runs)
    sections = [
        ("", _legend(runs)),
        ("Last values", _last(runs)),
        ("Curves", f'<div class="charts">{"".join(_curves(runs))}</div>'),
        ("Evaluations", _evaluations(runs)),
        (f"Differences from {runs[0].name}, paired by item", _differences(runs)),
        ("Configurations", _config(runs)),
    ]
    return page(f"{len(runs)} runs", names, sections)


def _legend(runs: Sequence[Run]) -> str:
    colours = COLOURS * len(runs)
    marks = (
        f'<span style="color:{colour}">●</span> {escape(run.name)} &nbsp;'
        for run, colour in zip(runs, colours)
    )
    return f"<p>{' '.join(marks)}</p>"


def _table(head: Sequence[str], rows: Iterator[tuple[str, Sequence[str]]]) -> str:
    """A table with names in the first column."""
    titles = "".join(f'<th class="number">{escape(name)}</th>' for name in head)
    lines = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, cells in rows
    )
    return f'<table class="numbers"><thead><tr>{titles}</tr></thead>{lines}</table>'


def _last(runs: Sequence[Run]) -> str:
    last = [run.last for run in runs]
    names = dict.fromkeys(name for one in last for name in one)
    rows = ((name, [shown(one.get(name)) for one in last]) for name in names)
    return _table(["", *(run.name for run in runs)], rows)


def _curves(runs: Sequence[Run]) -> Iterator[str]:
    known = {name for name, _, _ in _CURVES} | {*_OWN}
    more = dict.fromkeys(
        name for run in runs for row in run.rows for name in row if name.startswith("eval/")
    )
    for name, title, note in (*_CURVES, *((n, n, "") for n in more if n not in known)):
        lines = {run.name: _line(run, name) for run in runs}
        if not any(value is not None for _, values in lines.values() for value in values):
            continue
        look: Mapping[str, Any] = {"points": list(lines)} if name.startswith("eval/") else {}
        if name in ("loss", "grad_norm"):
            look = {"smooth": list(lines)}
        svg = curve_svg(lines, title=title, **look)
        caption = f"<figcaption>{escape(title)} <small>{escape(note)}</small></figcaption>"
        yield f"<figure>{caption}{svg}</figure>"


def _line(run: Run, name: str) -> tuple[list[float], list[float | None]]:
    rows = [row for row in run.rows if name in row]
    return [row["step"] for row in rows], [row[name] for row in rows]


def _evaluations(runs: Sequence[Run]) -> str:
    """The main number of each evaluation, run by run."""
    parts = []
    for name in sorted({name for run in runs for name in run.evaluations}):
        having = [run for run in runs if name in run.evaluations]
        main = having[0].evaluations[name].get("main")
        rows = [
            measured((run.name,), run.evaluations[name]["metrics"][main])
            for run in having
            if main in run.evaluations[name]["metrics"]
        ]
        if rows:
            parts.append(f"<h3>{escape(name)} <small>{escape(str(main))}</small></h3>")
            parts.append(whisker_table(("run",), rows))
    return "".join(parts)


def _differences(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs[1:]:
        for name, metrics in paired(run, runs[0]).items():
            summary = run.evaluations[name]
            for metric, one in metrics.items():
                main = metric == summary.get("main")
                sign = mood(one, bool(summary.get("lower_is_better"))) if main else ""
                rows.append(measured((run.name, f"{name}/{metric}"), one, sign))
    return whisker_table(("run", "metric"), rows, zero=True)


def _config(runs: Sequence[Run]) -> str:
    differing = config_differences(runs)
    if not differing:
        return "<p>All configurations are equal.</p>"
    rows = ((name, [_text(value) for value in each]) for name, each in differing.items())
    return _table(["", *(run.name for run in runs)], rows)


def _text(value: Any) -> str:
    return "–" if value is None else str(value)
