"""Pictures of a fit as SVG text: memory against capacity, arrays over a mesh, seconds of each
resource. No script; text and lines take the page's own colour, so that they read on light and
dark."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from research.parallel.axes import AxisRules
from research.training.curves import linear_ticks, tick_text
from research.training.plot import COLOURS, STYLE

GIB = 2**30
PARTS = {  # of a device's memory, by their names in a fit's JSON
    "params": "parameters trained", "frozen": "parameters frozen", "optimizer": "optimizer state",
    "gradients": "gradients", "temporaries": "activations and temporaries",
}  # fmt: skip
COLOURS_OF_PARTS, OVER = (COLOURS[0], COLOURS[5], COLOURS[3], COLOURS[2], COLOURS[1]), COLOURS[4]
BOLD = ' style="font-weight:700"'
WIDTH, NARROW = 1080, 440  # pixels of the memory picture, on a desk and on a telephone
ROW, BAR = 60, 22  # pixels
LETTER = 6.5  # pixels, a little more than a letter is wide: SVG cannot wrap or measure text
MOST_LINES = 16  # of a grid: more cannot be told apart, the label has the number


def memory_svg(fits: Sequence[Mapping], width: int = WIDTH) -> str:
    """A stacked bar for each target's device on one scale of GiB, over a track as long as its
    capacity; what is over the capacity is outlined. The parts and their sizes appear under the
    mouse. Letters have the size of the page's where it is shown `width` pixels wide."""
    # One byte at least, so that the scale of an empty step is not infinite.
    longest = max([1, *(size for fit in fits for size in _sizes(fit))])
    legend = _legend(width)
    top, foot = 8 + 18 * len(legend), 30  # room for the legend and for the ticks' numbers
    floor = top + ROW * len(fits)
    shapes = [_head(width, floor + foot, "memory of a device"), STYLE, *legend]
    for tick in linear_ticks(0, longest / GIB, max(3, width // 135)):
        x = round(tick * GIB / longest * width, 1)
        shapes.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{top}" y2="{floor}"/>')
        place = f'x="{x}" y="{floor + 18}" text-anchor="{_anchor(x, width)}"'
        unit = " GiB" if tick == 0 else ""
        shapes.append(f'<text class="soft" {place}>{tick_text(tick)}{unit}</text>')
    for index, fit in enumerate(fits):
        shapes += _memory_bar(fit, top + index * ROW + 6, width / longest, width)
    return "".join([*shapes, "</svg>"])


def mesh_svg(mesh: Mapping[str, int], rules: AxisRules) -> str:
    """The mesh, a parameter and a batch, each cut as the rules map its logical axes to the mesh;
    the part that one device holds is filled."""
    # The innermost axis runs across, all others down: a picture has two directions.
    used = [name for name, size in mesh.items() if size > 1]
    panels = [
        ("the mesh", used[:-1] or used, used[1:][-1:]),
        ("a matrix: width x features", rules["embed"], rules["mlp"]),
        ("a batch: rows x tokens", rules["batch"], rules["length"]),
    ]
    drawn = [_panel(place * 180, *panel, mesh) for place, panel in enumerate(panels)]
    return "".join([_head(540, 168, "the mesh and what it splits"), STYLE, *drawn, "</svg>"])


def roofline_svg(seconds: Mapping[str, float | None], bound: str | None) -> str:
    """A bar of seconds for each resource on its own, the binding one filled."""
    seconds_by_name = {name: time for name, time in seconds.items() if time is not None}
    # Steps that take no time at all still get bars.
    longest = max([*seconds_by_name.values(), 1e-12])
    shapes = [_head(540, 34 * len(seconds_by_name) + 8, "seconds of each resource"), STYLE]
    for row, (name, time) in enumerate(seconds_by_name.items()):
        y, binds = 8 + 34 * row, name == bound
        width = max(1.0, round(300 * time / longest, 1))
        look = f'fill="{COLOURS[1]}"' if binds else f'fill="{COLOURS[0]}" fill-opacity=".35"'
        words = f"{short_seconds(time)}{', binds' if binds else ''}"
        shapes.append(f'<text x="84" y="{y + 16}" text-anchor="end">{escape(name)}</text>')
        shapes.append(f'<rect x="94" y="{y}" width="{width}" height="{BAR}" rx="2" {look}/>')
        shapes.append(f'<text x="{100 + width}" y="{y + 16}"{BOLD if binds else ""}>{words}</text>')
    return "".join([*shapes, "</svg>"])


def short_seconds(seconds: float) -> str:
    """Three digits in the unit that suits: 1.25 s, 310 ms, 42 µs."""
    # The thresholds are where three digits would round up: 99.95 shows as 100, 0.9995 as 1.
    for size, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= size * 99.95:
            return f"{seconds / size:,.0f} {unit}"
        if seconds >= size * 0.9995:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.2g} µs"


def _memory_bar(fit: Mapping, y: int, scale: float, width: int) -> list[str]:
    """The row of a target: its name and verdict, and the bar below them. `scale` is pixels a
    byte."""
    capacity, end = fit["device_bytes"]["capacity"], fit["device_bytes"]["total"] * scale
    shapes = [_verdict_line(fit, y + 11, width)]
    y += 18
    # Without a capacity there is no track to compare with, as on a CPU.
    if not capacity:
        return shapes + _stacked(fit, y, scale)
    capacity_x = capacity * scale
    track = f'x="0" y="{y}" width="{capacity_x:.1f}" height="{BAR}"'
    shapes.append(f'<rect {track} fill="currentColor" fill-opacity=".09"/>')
    shapes += _stacked(fit, y, scale)
    if end > capacity_x:
        over = f'x="{capacity_x:.1f}" y="{y - 1}" width="{end - capacity_x:.1f}" height="{BAR + 2}"'
        shapes.append(f'<rect {over} fill="none" stroke="{OVER}" stroke-width="2"/>')
    mark = f'x1="{capacity_x:.1f}" x2="{capacity_x:.1f}" y1="{y - 4}" y2="{y + BAR + 4}"'
    shapes.append(
        f'<line {mark} stroke="currentColor" stroke-width="2">'
        f"<title>capacity: {capacity / GIB:.2f} GiB</title></line>"
    )
    return shapes


def _verdict_line(fit: Mapping, y: int, width: int) -> str:
    size, capacity = fit["device_bytes"]["total"], fit["device_bytes"]["capacity"]
    of = f" of {capacity / GIB:.2f}" if capacity else ""
    verdict, colour = "fits", COLOURS[2]
    if capacity and size > capacity:
        verdict, colour = f"does not fit: {(size - capacity) / GIB:.2f} GiB over", OVER
    return (
        f'<text x="0" y="{y}"{BOLD}>{escape(fit["target"])}</text>'
        f'<text x="{width}" y="{y}" text-anchor="end">{size / GIB:.2f}{of} GiB, '
        f'<tspan style="font-weight:700;fill:{colour}">{verdict}</tspan></text>'
    )


def _stacked(fit: Mapping, y: int, scale: float) -> list[str]:
    """A rectangle for each part of a device's memory, with its size inside where there is room."""
    titles = {**PARTS, "optimizer": "cache"} if fit.get("step") == "decode" else PARTS
    drawn, x = [], 0.0
    # In decoding the place of the optimizer's state is the cache's.
    for colour, (name, title) in zip(COLOURS_OF_PARTS, titles.items()):
        size = fit["device_bytes"][name]
        width = size * scale
        box = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}"'
        label = f"<title>{escape(title)}: {size / GIB:.2f} GiB</title>"
        drawn.append(f"<rect {box}>{label}</rect>")
        # A narrower one has no room for its number.
        if width > 64:
            inside = f'x="{x + width / 2:.1f}" y="{y + 15}" text-anchor="middle" style="fill:#fff"'
            drawn.append(f'<text {inside} pointer-events="none">{size / GIB:.2f}</text>')
        x += width
    return drawn


def _anchor(x: float, width: int) -> str:
    """Where a tick's text is held, so that it stays inside the picture at either end."""
    if x < 20:
        return "start"
    return "end" if x > width - 20 else "middle"


def _sizes(fit: Mapping) -> tuple[int, int]:
    return fit["device_bytes"]["total"], fit["device_bytes"]["capacity"] or 0


def _legend(width: int) -> list[str]:
    """The names of the parts beside their colours, in as many lines of text as they need."""
    lines: list[str] = []
    used = float(width)
    marks = [*zip(COLOURS_OF_PARTS, "■" * len(PARTS), PARTS.values()), ("", "❘", "capacity")]
    for colour, mark, title in marks:
        room = 32 + LETTER * len(title)
        # The first entry begins a line too.
        if used + room > width:
            lines.append("")
            used = 0.0
        look = f' style="fill:{colour}"' if colour else ""
        shift = ' dx="14"' if used else ""
        lines[-1] += f'<tspan{shift}{look}>{mark}</tspan><tspan dx="4">{escape(title)}</tspan>'
        used += room
    return [f'<text x="0" y="{14 + 18 * row}">{line}</text>' for row, line in enumerate(lines)]


def _panel(
    left: int, title: str, down: Sequence[str], across: Sequence[str], mesh: Mapping[str, int]
) -> str:
    """A rectangle cut into the devices of the mesh axes `down` and `across`."""
    x, y, width, height = left + 22, 44, 130, 96
    rows, columns = (math.prod(mesh.get(name, 1) for name in names) for names in (down, across))
    lines = []
    for count, line in (
        (rows, _across(x, y, width, height)),
        (columns, _down(x, y, width, height)),
    ):
        shown = min(count, MOST_LINES)
        lines += [line(step / shown) for step in range(1, shown)]
    # The filled cell keeps to the drawn grid, even where that is coarser than the mesh.
    across_one, down_one = width / min(columns, MOST_LINES), height / min(rows, MOST_LINES)
    cell = f'width="{across_one:.1f}" height="{down_one:.1f}" fill="{COLOURS[0]}"'
    frame = f'width="{width}" height="{height}" fill="none" stroke="currentColor"'
    above = f'x="{x + width / 2}" y="{y - 8}" text-anchor="middle"'
    share = f"1 / {rows * columns:,} on a device" if rows * columns > 1 else "whole on every device"
    below = share if title != "the mesh" else _devices(mesh)
    side = f'transform="translate({x - 7} {y + height / 2}) rotate(-90)" text-anchor="middle"'
    return (
        f'<text x="{x}" y="14"{BOLD}>{escape(title)}</text>'
        f'<text class="soft" {above}>{escape(_axes(across, mesh))}</text>'
        f'<text class="soft" {side}>{escape(_axes(down, mesh))}</text>'
        f'<rect x="{x}" y="{y}" {cell} fill-opacity=".75"/>{"".join(lines)}'
        f'<rect x="{x}" y="{y}" {frame} stroke-opacity=".6"/>'
        f'<text x="{x}" y="{y + height + 20}">{below}</text>'
    )


def _across(x: int, y: int, width: int, height: int):
    return lambda at: _thin_line(x, x + width, y + at * height, y + at * height)


def _down(x: int, y: int, width: int, height: int):
    return lambda at: _thin_line(x + at * width, x + at * width, y, y + height)


def _thin_line(x1: float, x2: float, y1: float, y2: float) -> str:
    ends = f'x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="currentColor" stroke-opacity=".35"/>'


def _axes(names: Sequence[str], mesh: Mapping[str, int]) -> str:
    return " · ".join(f"{name} {mesh[name]}" for name in names if mesh.get(name, 1) > 1)


def _devices(mesh: Mapping[str, int]) -> str:
    count = math.prod(mesh.values())
    return f"{count:,} devices" if count > 1 else "one device"


def _head(width: int, height: int, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="graft-plot" role="img" '
        f'aria-label="{escape(title)}" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">'
    )
