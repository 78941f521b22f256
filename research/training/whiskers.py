"""Numbers with their intervals as a table: each a dot between whiskers, all on one scale."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from research.training.plot import COLOURS

_WIDTH, _HEIGHT, _EDGE = 300, 22, 6


@dataclass(frozen=True)
class Measured:
    """A row: its names in the first columns, the number, its interval (None: none) and over how
    many items; `mood` is "good", "bad" or nothing."""

    names: tuple[str, ...]
    value: float | None
    low: float | None
    high: float | None
    n: int
    mood: str = ""


def measured(names: Sequence[str], estimate: Mapping[str, Any], mood: str = "") -> Measured:
    """The row of an estimate as it is kept in JSON: "value", "low", "high" and "n"."""
    low, high = estimate.get("low"), estimate.get("high")
    return Measured(tuple(names), estimate.get("value"), low, high, estimate.get("n", 0), mood)


def whisker_table(
    columns: Sequence[str],
    rows: Sequence[Measured],
    zero: bool = False,
    scale: tuple[float, float] | None = None,
) -> str:
    """A table of rows with these names of the first columns; "" for no rows. `zero` marks 0 on the
    scale, which differences are read against. The scale is that of the rows, or a given one, beyond
    which nothing is drawn."""
    if not rows:
        return ""
    ends = [
        end
        for row in rows
        for end in (row.low, row.value, row.high)
        if end is not None and math.isfinite(end)
    ]
    ends += [0.0] * zero
    scale = scale or (min(ends, default=0.0), max(ends, default=1.0))
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    head += "".join(f'<th class="number">{name}</th>' for name in ("value", "95% interval", "n"))
    lines = [f'<thead><tr>{head}<th class="wide"></th></tr></thead>']
    for row in rows:
        names = "".join(f"<th>{escape(name)}</th>" for name in row.names)
        interval = "" if row.low is None else f"{shown(row.low)} to {shown(row.high)}"
        lines.append(
            f'<tr class="{escape(row.mood)}">{names}<td><b>{shown(row.value)}</b></td>'
            f"<td>{interval}</td><td>{row.n:,}</td>"
            f'<td class="wide">{_whisker(row, scale, zero)}</td></tr>'
        )
    return f'<table class="numbers">{"".join(lines)}</table>'


def shown(value: float | None) -> str:
    """Four digits of a number, a dash for one that is not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 10000 else f"{value:.4g}"


def _whisker(row: Measured, scale: tuple[float, float], zero: bool) -> str:
    low, high = scale
    if row.value is None or not low <= row.value <= high:
        return ""
    room = _WIDTH - 2 * _EDGE
    # A scale of one point has it in the middle.
    share = lambda value: (min(max(value, low), high) - low) / (high - low) if high > low else 0.5
    x = lambda value: _EDGE + room * share(value)
    middle = _HEIGHT / 2
    colour = {"good": "var(--good)", "bad": "var(--bad)"}.get(row.mood, COLOURS[0])
    parts = []
    if zero:
        line = f'x1="{x(0.0):.1f}" x2="{x(0.0):.1f}" y1="0" y2="{_HEIGHT}"'
        parts.append(f'<line {line} style="stroke:currentColor;stroke-opacity:.35"/>')
    if row.low is not None and row.high is not None:
        line = f'x1="{x(row.low):.1f}" x2="{x(row.high):.1f}" y1="{middle}" y2="{middle}"'
        parts.append(f'<line {line} style="stroke:{colour};stroke-width:2"/>')
    parts.append(f'<circle cx="{x(row.value):.1f}" cy="{middle}" r="4" style="fill:{colour}"/>')
    look = f'viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {look}>{"".join(parts)}</svg>'
