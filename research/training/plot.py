"""Curves as SVG text: no dependency, no script, readable on light and dark pages, in a report or a
notebook.

`IPython.display.SVG(curve_svg({"loss": (steps, losses)}))` shows one in a notebook. Text and axes
take the page's own colour; the values at a step appear under the mouse, by style rules alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from research.training.curves import (
    SMALLEST,
    Clean,
    Line,
    fraction,
    linear_ticks,
    log_ticks,
    nearest,
    padded,
    running_mean,
    thin,
    tick_text,
    usable,
)

Band = tuple[Sequence[float], Sequence[float], Sequence[float]]  # xs, lows, highs
# Readable on white and on black.
COLOURS = ("#4c8bf5", "#e8833a", "#2fa36b", "#a66bdb", "#d9534f", "#8a8f98")
POINTS = 400  # most points of a curve; more cannot be told apart at this width
DOTS = 100  # most points that are drawn as dots; more would touch each other
READINGS = 120  # places where the mouse finds values
TOP, RIGHT, BOTTOM, LEFT = 16, 16, 28, 54  # margins, room for legend and tick labels

STYLE = """<style>
.graft-plot text{fill:currentColor;font:11px system-ui,sans-serif}
.graft-plot .grid{stroke:currentColor;stroke-opacity:.13}
.graft-plot .soft{fill-opacity:.62}
.graft-plot .reading{opacity:0}
.graft-plot .reading:hover{opacity:1}
.graft-plot .reading text{font-weight:600}
.graft-plot .reading line{stroke-opacity:.5}
</style>"""


@dataclass(frozen=True)
class Frame:
    """The plotting area: from values to pixels."""

    width: int
    height: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log_x: bool
    log_y: bool

    def x(self, value: float) -> float:
        """The pixel column of a value, to a tenth."""
        return round(
            LEFT + (self.width - LEFT - RIGHT) * fraction(value, *self.x_range, self.log_x), 1
        )

    def y(self, value: float) -> float:
        """The pixel row of a value, to a tenth; rows count from the top."""
        share = fraction(value, *self.y_range, self.log_y)
        return round(self.height - BOTTOM - (self.height - TOP - BOTTOM) * share, 1)


def curve_svg(
    lines: Mapping[str, Line],
    *,
    title: str = "",
    log_x: bool = False,
    log_y: bool = False,
    x_range: tuple[float, float] | None = None,
    from_zero: bool = False,
    points: Sequence[str] = (),
    smooth: Sequence[str] = (),
    marks: Mapping[str, float] | None = None,
    bands: Mapping[str, Band] | None = None,
    width: int = 560,
    height: int = 250,
) -> str:
    """An `<svg>` of lines (xs, ys) by name; the xs must not decrease. Values that are None, not
    finite, or not positive on a logarithmic axis are left out. Without any value it says so.

    Lines named in `points` get a dot at each value while there is room; those in `smooth` are drawn
    faintly below their running mean; `marks` are dashed horizontal lines by name. A line with more
    values than fit is drawn as the mean of neighbours above a band from their lowest to their
    highest; `bands` are such (xs, lows, highs) of one's own. `from_zero` starts a linear y axis at
    0.
    """
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    look = f'class="graft-plot" role="img" aria-label="{escape(title)}" {size}'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {look}>'
    # What cannot be drawn is dropped before the ranges are taken, or a NaN would be the range.
    cleaned = {name: usable(line, log_x, log_y) for name, line in lines.items()}
    kept = {name: line for name, line in cleaned.items() if line[0]}
    if not kept:
        return f'{head}{STYLE}<text x="{width // 2}" y="{height // 2}">no values</text></svg>'
    marks = _drawn_marks(marks or {}, log_y)
    bands = {name: _clean_band(band, log_x, log_y) for name, band in (bands or {}).items()}
    # Marks and bands are part of the picture, so the axis covers them.
    heights = [y for _, ys in kept.values() for y in ys] + list(marks.values())
    heights += [y for _, *ends in bands.values() for ys in ends for y in ys]
    heights += [0.0] * (from_zero and not log_y)
    x_range = x_range or padded([x for xs, _ in kept.values() for x in xs], log_x, 0.0)
    frame = Frame(width, height, x_range, padded(heights, log_y, 0.05), log_x, log_y)
    # By the order of all lines, so that a line keeps its colour when another one has no values.
    colours = dict(zip([*lines, *marks], COLOURS * (1 + len(lines) + len(marks))))
    elements = [head, STYLE, *_axes(frame)]
    elements += [_mark(name, y, frame, colours[name]) for name, y in marks.items()]
    elements += [_band(*band, frame, colours[name]) for name, band in bands.items()]
    for name, line in kept.items():
        elements += _curve(line, frame, colours[name], dots=name in points, smooth=name in smooth)
    if len(lines) > 1:
        elements.append(_legend(kept, colours, frame))
    return "".join([*elements, *_readings(kept, colours, frame), "</svg>"])


def _axes(frame: Frame) -> list[str]:
    elements = []
    # Positions are numbers and tick texts come from numbers, so nothing here needs escaping.
    for tick in (log_ticks if frame.log_y else linear_ticks)(*frame.y_range):
        y = frame.y(tick)
        elements.append(
            f'<line class="grid" x1="{LEFT}" x2="{frame.width - RIGHT}" y1="{y}" y2="{y}"/>'
        )
        place = f'x="{LEFT - 7}" y="{y}" dy=".35em" text-anchor="end"'
        elements.append(f'<text class="soft" {place}>{tick_text(tick)}</text>')
    for tick in (log_ticks if frame.log_x else linear_ticks)(*frame.x_range):
        place = f'x="{frame.x(tick)}" y="{frame.height - BOTTOM + 18}" text-anchor="middle"'
        elements.append(f'<text class="soft" {place}>{tick_text(tick)}</text>')
    return elements


def _drawn_marks(marks: Mapping[str, float], log_y: bool) -> dict[str, float]:
    kept = ((n, y) for n, y in marks.items() if math.isfinite(y) and (y > SMALLEST or not log_y))
    return dict(kept)


def _mark(name: str, y: float, frame: Frame, colour: str) -> str:
    right, at = frame.width - RIGHT, frame.y(y)
    look = f'stroke="{colour}" stroke-dasharray="6 4" stroke-width="1.5"'
    line = f'<line x1="{LEFT}" x2="{right}" y1="{at}" y2="{at}" {look}/>'
    # No room above the line at the top edge: its label then goes below.
    below = at < TOP + 14
    place = f'x="{right}" y="{at + (14 if below else -6)}" text-anchor="end"'
    text = f'<text {place} style="fill:{colour}">'
    return f"{line}{text}{escape(name)} {y:.4g}</text>"


def _curve(line: Clean, frame: Frame, colour: str, dots: bool, smooth: bool) -> list[str]:
    axis = (*frame.x_range, frame.log_x)
    groups, elements = thin(line, POINTS, *axis), []
    # A thinned line hides its extremes, which a loss spike is about: they are drawn as a band.
    if any(low < high for _, _, low, high in groups):
        xs, _, lows, highs = zip(*groups)
        elements.append(_band(xs, lows, highs, frame, colour))
    elif smooth:
        raw = _places([(x, y) for x, y, _, _ in groups], frame)
        elements.append(
            f'<polyline points="{raw}" fill="none" stroke="{colour}" stroke-opacity=".4"/>'
        )
    if smooth:
        groups = thin((line[0], running_mean(line[1])), POINTS, *axis)
    path = _places([(x, y) for x, y, _, _ in groups], frame)
    look = f'fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"'
    elements.append(f'<polyline points="{path}" {look}/>')
    # A line of one value has no length and would not be seen.
    if (dots and len(line[0]) <= DOTS) or len(line[0]) == 1:
        elements += [
            f'<circle cx="{frame.x(x)}" cy="{frame.y(y)}" r="3" fill="{colour}"/>'
            for x, y in zip(*line)
        ]
    return elements


def _band(xs, lows, highs, frame: Frame, colour: str) -> str:
    outline = [*zip(xs, highs), *reversed([*zip(xs, lows)])]
    return f'<polygon points="{_places(outline, frame)}" fill="{colour}" fill-opacity=".18"/>'


def _clean_band(band: Band, log_x: bool, log_y: bool) -> Band:
    """The places of a band whose both ends can be drawn."""
    xs, lows, highs = band
    kept = set(usable((xs, lows), log_x, log_y)[0]) & set(usable((xs, highs), log_x, log_y)[0])
    columns = zip(*((x, low, high) for x, low, high in zip(xs, lows, highs) if x in kept))
    return tuple(columns) or ((), (), ())


def _places(pairs: Sequence[tuple[float, float]], frame: Frame) -> str:
    return " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in pairs)


def _legend(kept: Mapping[str, Clean], colours: Mapping[str, str], frame: Frame) -> str:
    entries = (
        f'<tspan dx="12" style="fill:{colours[name]}">●</tspan><tspan dx="4">{escape(name)}</tspan>'
        for name in kept
    )
    return (
        f'<text x="{frame.width - RIGHT}" y="{TOP - 4}" text-anchor="end">{"".join(entries)}</text>'
    )


def _readings(kept: Mapping[str, Clean], colours: Mapping[str, str], frame: Frame) -> list[str]:
    """Strips that together cover the plot; the one under the mouse shows the nearest value of every
    line."""
    # Lines need not share their steps (evaluations are rarer), so readings go over all of them.
    xs = sorted({x for line in kept.values() for x in line[0]})
    # Every reading holds the values of all lines, so their number decides the size of the page.
    xs = xs[:: math.ceil(len(xs) / READINGS)]
    edges = [
        LEFT,
        *((frame.x(a) + frame.x(b)) / 2 for a, b in zip(xs, xs[1:])),
        frame.width - RIGHT,
    ]
    return [
        _reading(x, start, end, kept, colours, frame) for x, start, end in zip(xs, edges, edges[1:])
    ]


def _reading(
    x, start: float, end: float, kept: Mapping[str, Clean], colours: Mapping[str, str], frame: Frame
) -> str:
    near = {name: nearest(line, x) for name, line in kept.items()}
    exact = "\n".join(f"{name} {y:.6g} at {at:,.6g}" for name, (at, y) in near.items())
    short = " · ".join(
        f"{name} {y:.4g}" if len(near) > 1 else f"{y:.4g}" for name, (_, y) in near.items()
    )
    dots = (
        f'<circle cx="{frame.x(at)}" cy="{frame.y(y)}" r="3.5" fill="{colours[name]}"/>'
        for name, (at, y) in near.items()
    )
    middle, floor = frame.x(x), frame.height - BOTTOM
    # The text goes to the side with more room.
    anchor, shift = ("start", 6) if middle < (LEFT + frame.width) / 2 else ("end", -6)
    # Where the curves are low, the text goes to the top.
    low = sum(frame.y(y) for _, y in near.values()) / len(near) > (TOP + floor) / 2
    place = f'x="{middle + shift:.1f}" y="{TOP + 12 if low else floor - 6}" text-anchor="{anchor}"'
    strip = f'x="{start:.1f}" y="{TOP}" width="{max(0.1, end - start):.1f}" height="{floor - TOP}"'
    return (
        f'<g class="reading"><title>{escape(exact)}</title><rect {strip} fill-opacity="0"/>'
        f'<line class="grid" x1="{middle}" x2="{middle}" y1="{TOP}" y2="{floor}"/>{"".join(dots)}'
        f"<text {place}>{x:,.6g}: {escape(short)}</text></g>"
    )
