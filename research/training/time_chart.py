"""The picture of where a run's time went: one bar of coloured shares above a table of them."""

from html import escape

from research.training.goodput import KINDS, Goodput
from research.training.progress import clock_time

# Green is what counts, red what was for nothing; readable on white and on black.
COLOURS = {
    "step": "#2fa36b",
    "start": "#8a8f98",
    "compiling": "#4c8bf5",
    "data": "#e8833a",
    "evaluating": "#a66bdb",
    "sampling": "#3bb3b8",
    "saving": "#c9a227",
    "lost": "#d9534f",
    "down": "#5b3a3a",
}
WIDTH, HEIGHT = 1000, 26


def time_chart(spent: Goodput) -> str:
    """The bar and its table as HTML; "" for a run without any time."""
    if spent.total <= 0:
        return ""
    parts, left = [], 0.0
    for kind, colour in COLOURS.items():
        width = WIDTH * spent.seconds[kind] / spent.total
        parts.append(
            f'<rect x="{left:.1f}" y="0" width="{width:.1f}" height="{HEIGHT}" fill="{colour}">'
            f"<title>{escape(kind)} {spent.seconds[kind] / spent.total:.1%}</title></rect>"
        )
        left += width
    look = f'viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" width="100%"'
    bar = (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="where the time went" '
        f'{look} height="{HEIGHT}">{"".join(parts)}</svg>'
    )
    rows = "".join(
        f'<tr><th><span style="color:{COLOURS[kind]}">&#9632;</span> {escape(kind)}</th>'
        f"<td>{spent.seconds[kind] / spent.total:.1%}</td><td>{_length(spent.seconds[kind])}</td>"
        f"<td>{escape(meaning)}</td></tr>"
        for kind, meaning in KINDS.items()
        if spent.seconds[kind] > 0
    )
    return f'{bar}<table class="times">{rows}</table>'


def time_lines(spent: Goodput) -> list[str]:
    """The same as lines of text, for a terminal."""
    return [
        f"{kind:<11}{spent.seconds[kind] / spent.total:>7.1%}{_length(spent.seconds[kind]):>12}  "
        f"{meaning}"
        for kind, meaning in KINDS.items()
        if spent.seconds[kind] > 0
    ]


def _length(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else clock_time(seconds)
