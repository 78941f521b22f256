"""The reliability diagram of an evaluation: how often predictions of a confidence are right."""

from collections.abc import Mapping, Sequence
from typing import Any

from research.training.plot import COLOURS

_BINS = 10
_SIDE, _EDGE = 260, 36  # pixels of the square, and around it


def reliability_chart(items: Sequence[Mapping[str, Any]]) -> str:
    """A figure of the share of right answers over the mean confidence of ten bins of equal width,
    for items that have both as "acc" and "confidence"; "" without any. A dot below the dashed line
    is a bin of too much confidence, and its area is that of its items."""
    pairs = [
        (one["metrics"]["confidence"], one["metrics"]["acc"])
        for one in items
        if None not in map(one.get("metrics", {}).get, ("confidence", "acc"))
    ]
    if not pairs:
        return ""
    bins: dict[int, list[tuple[float, float]]] = {}
    for sure, right in pairs:
        bins.setdefault(min(int(sure * _BINS), _BINS - 1), []).append((sure, right))
    x = lambda value: _EDGE + _SIDE * value
    y = lambda value: _EDGE / 2 + _SIDE * (1 - value)
    parts = [
        f'<rect x="{x(0):.1f}" y="{y(1):.1f}" width="{_SIDE}" height="{_SIDE}" '
        'style="fill:none;stroke:currentColor;stroke-opacity:.25"/>',
        f'<line x1="{x(0):.1f}" y1="{y(0):.1f}" x2="{x(1):.1f}" y2="{y(1):.1f}" '
        'style="stroke:currentColor;stroke-opacity:.5;stroke-dasharray:4 4"/>',
    ]
    for _, of_it in sorted(bins.items()):
        mean, share = (sum(column) / len(of_it) for column in zip(*of_it))
        radius = 3 + 14 * (len(of_it) / len(pairs)) ** 0.5
        parts.append(
            f'<circle cx="{x(mean):.1f}" cy="{y(share):.1f}" r="{radius:.1f}" '
            f'style="fill:{COLOURS[0]};fill-opacity:.7"><title>{len(of_it):,} items, confidence '
            f"{mean:.3f}, right {share:.3f}</title></circle>"
        )
    for value in (0.0, 0.5, 1.0):
        parts.append(_text(x(value), y(0) + 14, f"{value:g}", "middle"))
        parts.append(_text(x(0) - 6, y(value) + 4, f"{value:g}", "end"))
    parts.append(_text(x(0.5), y(0) + 30, "confidence", "middle"))
    parts.append(_text(x(0.04), y(0.93), "share right", "start"))
    box = f'viewBox="0 0 {_SIDE + 2 * _EDGE} {_SIDE + 2 * _EDGE - 8}"'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{"".join(parts)}</svg>'
    caption = "<figcaption>Reliability</figcaption>"
    return f'<figure style="max-width:380px">{caption}{svg}</figure>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} style="fill:currentColor;font:11px system-ui,sans-serif">{text}</text>'
