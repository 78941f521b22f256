"""The charts of `report.html`: one figure for each quantity that the rows of a run have."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from research.training.metrics import Row
from research.training.plot import curve_svg

SPEEDS = (  # (name in a row, title, unit, factor from the row's unit)
    ("tokens_per_second", "Throughput", "tokens per second", 1.0),
    ("mfu", "Model FLOP utilisation", "percent of the published peak", 100.0),
    ("memory_bytes", "Device memory", "GiB at the peak, fullest device", 2.0**-30),
)
# Quantities with a figure of their own, or that are no curve. Any other one, such as a metric of an
# objective, gets a plain figure.
KNOWN = (
    "step", "loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu", "memory_bytes",
    "seconds", "tokens", "nonfinite", "eval/loss", "eval/bits_per_byte", "eval/gzip_bits_per_byte",
)  # fmt: skip


def charts(rows: Sequence[Row]) -> Iterable[str]:
    """The figures of a report as HTML: one for each quantity that the rows have, those that are not
    in `KNOWN` last. A quantity without a number gives ""."""
    # Every figure shows the same steps, so that they can be compared by eye.
    steps = (0.0, float(max(row["step"] for row in rows)) or 1.0)
    loss = {"training": _line(rows, "loss"), "held out": _line(rows, "eval/loss")}
    look = {"smooth": ["training"], "points": ["held out"]}
    yield _figure("Loss", "nats per target", loss, steps, **look)
    # The loss of a policy is around zero, where a logarithm would show half of it.
    if all(value is None or value > 0 for _, values in loss.values() for value in values):
        note = "a power law is a straight line"
        yield _figure("Loss on logarithmic axes", note, loss, None, log_x=True, log_y=True, **look)
    # A constant of the held-out text: a mark and not a curve.
    gzip = [row["eval/gzip_bits_per_byte"] for row in rows if row.get("eval/gzip_bits_per_byte")]
    marks = {"gzip -9": gzip[-1]} if gzip else {}
    bits = {"model": _line(rows, "eval/bits_per_byte")}
    yield _figure(
        "Bits per byte", "held out, lower is better", bits, steps, points=["model"], marks=marks
    )
    yield _figure(
        "Learning rate", "", {"learning rate": _line(rows, "learning_rate")}, steps, from_zero=True
    )
    norm = _line(rows, "grad_norm")
    yield _figure(
        "Gradient norm",
        "before clipping",
        {"norm": norm},
        steps,
        smooth=["norm"],
        # A norm that falls by more than this hides its later course on a linear axis.
        log_y=_spans(norm[1], 30),
    )
    for name, title, note, factor in SPEEDS:
        line = _line(rows, name)
        # `value and`: a value that is null stays null.
        scaled = {title: (line[0], [value and value * factor for value in line[1]])}
        yield _figure(title, note, scaled, steps, smooth=[title], from_zero=True)
    yield from _others(rows, steps)


def _others(rows: Sequence[Row], steps: tuple[float, float]) -> Iterable[str]:
    """The figures of the quantities that are not in `KNOWN`; one that is measured on both, such as
    a reward, has its training and its held-out curve in one."""
    names = dict.fromkeys(name for row in rows for name in row if name not in KNOWN)
    for name in names:
        if name.startswith("eval/") and name.removeprefix("eval/") in names:
            continue
        both = {"training": _line(rows, name), "held out": _line(rows, f"eval/{name}")}
        lines = both if f"eval/{name}" in names else {name: _line(rows, name)}
        dots = ["held out", *(name for name in lines if name.startswith("eval/"))]
        yield _figure(name, "", lines, steps, points=dots, smooth=["training", name])


def _line(rows: Sequence[Row], name: str) -> tuple[list[float], list[float | None]]:
    points = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in points], [
        value if isinstance(value, int | float) else None for _, value in points
    ]


def _spans(values: Sequence[float | None], ratio: float) -> bool:
    positive = [value for value in values if value and value > 0]
    return bool(positive) and max(positive) > ratio * min(positive)


def _figure(
    title: str, note: str, lines: Mapping[str, Any], steps: tuple[float, float] | None, **look: Any
) -> str:
    """A figure over the given steps, "" where no line has a number."""
    lines = {name: line for name, line in lines.items() if any(y is not None for y in line[1])}
    if not lines:
        return ""
    svg = curve_svg(lines, title=title, x_range=steps, **look)
    caption = f"<figcaption>{escape(title)} <small>{escape(note)}</small></figcaption>"
    return f"<figure>{caption}{svg}</figure>"
