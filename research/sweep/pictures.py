"""Pictures of an answer as SVG text: intervals, and a heat map of two factors. No script; text and
lines take the page's own colour."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from statistics import median

from research.sweep.answer import Finding
from research.sweep.statistics import Comparison
from research.training.curves import linear_ticks, padded, tick_text
from research.training.plot import STYLE

WIDTH = 1080  # pixels at which letters have the size of the page's
LABEL, VERDICT = 250, 250  # pixels for the names on the left and the words on the right
ROW, TOP, FOOT = 30, 12, 34
LETTER = 6.6  # pixels, a little more than a letter is wide
COLOURS = {"better": "var(--good)", "worse": "var(--bad)"}
SOFT = "var(--soft)"


def interval_svg(found: Sequence[Finding]) -> str:
    """A row for each finding: its difference from the baseline with its interval, and a faint dot
    for each seed's. Findings of one metric; those of one factor stand together, and those without
    a seed are left out."""
    rows = [one for one in found if one.comparison.seeds]
    if not rows:
        return ""
    low, high = _range([one.comparison for one in rows])
    floor = TOP + ROW * len(rows)

    def x(value: float) -> float:
        return round(LABEL + (WIDTH - LABEL - VERDICT) * (value - low) / (high - low), 1)

    shapes = [_head(floor + FOOT, "differences from the baseline")]
    for tick in linear_ticks(low, high):
        at = x(tick)
        look = 'stroke="currentColor" stroke-opacity=".5"' if tick == 0 else 'class="grid"'
        shapes.append(f'<line {look} x1="{at}" x2="{at}" y1="{TOP}" y2="{floor}"/>')
        words = "baseline" if tick == 0 else f"{'+' if tick > 0 else ''}{tick_text(tick)}"
        place = f'x="{at}" y="{floor + 18}" text-anchor="middle"'
        shapes.append(f'<text class="soft" {place}>{words}</text>')
    for number, one in enumerate(rows):
        first = not number or rows[number - 1].factor != one.factor
        shapes += _row(one, TOP + ROW * number, x, (low, high), first)
    return "".join([*shapes, "</svg>"])


def _range(compared: Sequence[Comparison]) -> tuple[float, float]:
    """The ends of the axis. One interval may be many times as wide as the others, as where a run
    has diverged: it then leaves the picture, and an arrow says so."""
    ends = [v for c in compared for v in (c.low, c.high) if math.isfinite(v)]
    ends += [c.difference for c in compared]
    limit = 6 * median(map(abs, ends)) or 1.0
    return padded([0.0, *(min(max(v, -limit), limit) for v in ends)], False, 0.04)


def _row(one: Finding, top: float, x, ends: tuple[float, float], first: bool) -> list[str]:
    c, middle = one.comparison, top + ROW / 2
    colour = COLOURS.get(c.verdict, SOFT)
    exact = f"{one.factor} {one.level}: {c.difference:+.6g}, {c.low:+.6g} to {c.high:+.6g}"
    shapes = [f"<g><title>{escape(exact)}</title>"]
    if first:
        line = f'x1="0" x2="{WIDTH}" y1="{top}" y2="{top}"'
        shapes.append(f'<line class="grid" {line}/>')
        place = f'x="0" y="{middle}" dy=".35em"'
        shapes.append(f'<text class="soft" {place}>{escape(_cut(one.factor, 17))}</text>')
    place = f'x="{LABEL - 12}" y="{middle}" dy=".35em" text-anchor="end"'
    shapes.append(f'<text {place} style="font-weight:600">{escape(_cut(one.level, 19))}</text>')
    inside = lambda value: x(min(max(value, ends[0]), ends[1]))
    for level, base in one.sample.pairs:
        spot = f'cx="{inside(level - base)}" cy="{middle}" r="2.5"'
        shapes.append(f'<circle {spot} style="fill:{colour}" fill-opacity=".35"/>')
    place = f'x1="{inside(c.low)}" x2="{inside(c.high)}" y1="{middle}" y2="{middle}"'
    shapes.append(f'<line {place} style="stroke:{colour}" stroke-width="2.5"/>')
    for beyond, edge, tip in ((c.low < ends[0], ends[0], -7), (c.high > ends[1], ends[1], 7)):
        if beyond:
            corners = f"{x(edge) + tip},{middle} {x(edge)},{middle - 5} {x(edge)},{middle + 5}"
            shapes.append(f'<polygon points="{corners}" style="fill:{colour}"/>')
    spot = f'cx="{inside(c.difference)}" cy="{middle}" r="5"'
    shapes.append(f'<circle {spot} style="fill:{colour}"/>')
    place = f'x="{WIDTH - VERDICT + 14}" y="{middle}" dy=".35em"'
    words = f"{c.difference:+.3g}  {c.verdict}"
    shapes.append(f'<text {place} style="fill:{colour};font-weight:600">{escape(words)}</text>')
    return [*shapes, "</g>"]


def heat_svg(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Mapping[tuple[str, str], float],
    better: str,
) -> str:
    """A grid of mean values by the levels of two factors, coloured from the worst to the best, the
    best one outlined. Combinations without a value stay empty."""
    label = min(200, 20 + LETTER * max(map(len, rows)))
    cell, height = min(130.0, (WIDTH / 2 - label) / len(columns)), 34
    shapes = [_head(30 + height * len(rows), "a metric over two factors", round(WIDTH / 2))]
    low, high = min(values.values()), max(values.values())
    best = low if better == "lower" else high
    for place, name in enumerate(columns):
        x = label + cell * (place + 0.5)
        words = escape(_cut(name, int(cell / LETTER)))
        shapes.append(f'<text class="soft" x="{x:.1f}" y="16" text-anchor="middle">{words}</text>')
    for line, row in enumerate(rows):
        y = 24 + height * line
        place = f'x="{label - 10:.1f}" y="{y + height / 2}" dy=".35em" text-anchor="end"'
        shapes.append(f'<text class="soft" {place}>{escape(_cut(row, 28))}</text>')
        for place, column in enumerate(columns):
            value = values.get((row, column))
            if value is not None:
                share = abs(value - best) / (high - low) if high > low else 0.0
                shapes += _heat_cell(label + cell * place, y, cell, height, value, share)
    return "".join([*shapes, "</svg>"])


def _heat_cell(x: float, y: float, width: float, height: float, value: float, share: float):
    """`share` is 0 for the best value and 1 for the worst."""
    size = f'x="{x + 1:.1f}" y="{y + 1}" width="{width - 2:.1f}" height="{height - 2}" rx="4"'
    # Strong colour for what is good: on light and dark pages the worst fades into the page.
    yield f'<rect {size} fill="#2fa36b" fill-opacity="{0.62 - 0.56 * share:.3f}"/>'
    if not share:
        yield f'<rect {size} fill="none" style="stroke:var(--good)" stroke-width="2"/>'
    place = f'x="{x + width / 2:.1f}" y="{y + height / 2}" dy=".35em" text-anchor="middle"'
    yield f"<text {place}>{value:.4g}</text>"


def _head(height: float, title: str, width: int = WIDTH) -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    look = f'class="graft-plot" role="img" aria-label="{escape(title)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {look} {size}>{STYLE}'


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: max(1, letters - 1)] + "…"
