"""The display of a run on standard error: a live bar on a terminal, plain lines elsewhere."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

BAR_MIN = 10  # cells; below that the bar says nothing and the fields are worth more
PLAIN_INTERVAL = 1.0  # seconds between plain lines: a log file of a long run stays readable


def short_number(value: float) -> str:
    """The value in three digits with a suffix: 950, 45.2k, 1.31M, 8.03B."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        # Three digits round 999.5 up to 1,000, which the next suffix writes as 1.
        if abs(value) >= 0.9995 * size:
            return (
                f"{value / size:.3g}{suffix}"
                if abs(value) < 999.5 * size
                else f"{value / size:.0f}{suffix}"
            )
    return f"{value:.3g}"


def clock_time(seconds: float) -> str:
    """A duration as 4:05, 1:02:03 or 2d 04:00."""
    # Estimates of the time left can fall below 0 at the end.
    minutes, second = divmod(round(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02d}:{minute:02d}"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def printable(text: str) -> str:
    """The text without characters that could steer a terminal, each shown as its escape; line ends
    and tabs stay."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def row_fields(row: dict[str, Any]) -> list[str]:
    """The values of a training row that are displayed, the most important first."""
    fields = []
    if "loss" in row:
        # Rows are as in metrics.jsonl, which has null for what JSON lacks.
        fields.append("loss nan" if row["loss"] is None else f"loss {row['loss']:.4f}")
    if row.get("tokens_per_second") is not None:
        fields.append(f"{short_number(row['tokens_per_second'])} tok/s")
    if row.get("mfu") is not None:
        fields.append(f"MFU {row['mfu']:.1%}")
    return fields


def evaluation_line(row: dict[str, Any]) -> str:
    """An evaluation row on one line, with gzip's bits per byte in brackets after the model's."""
    values = {
        key.removeprefix("eval/"): value for key, value in row.items() if key.startswith("eval/")
    }
    # A constant of the data, so it is no value of its own here.
    gzip = values.pop("gzip_bits_per_byte", None)
    parts = []
    for key, value in values.items():
        if value is None:  # a metric that is no number, which JSON cannot hold
            shown = "nan"
        else:
            shown = f"{value:.4f}" if isinstance(value, float) else str(value)
        parts.append(f"{key.replace('_', ' ')} {shown}")
        if key == "bits_per_byte" and gzip is not None:
            parts[-1] += f" (gzip {gzip:.4f})"
    return f"eval {row['step']:,}  " + "  ".join(parts)


def bar_parts(
    width: int, step: int, total: int, fields: list[str], state: str
) -> tuple[str, int, int, str]:
    """(left text, filled cells, empty cells, right text), together at most `width` cells unless the
    step count alone is wider.

    Fields are dropped until the bar has room, the least important first: those between the first
    (the loss) and the last (the time left), then the last, the first, and the state.
    """
    # Padded to the width of the total, so that the bar does not move as the count grows.
    left = f"{step:>{len(f'{total:,}')},}/{total:,}  "
    parts = [part for part in [state, *fields] if part]
    while parts and width - len(left) - sum(len(part) + 2 for part in parts) < BAR_MIN:
        parts.pop(-2 if len(parts) > (3 if state else 2) else -1)
    right = "".join(f"  {part}" for part in parts)
    cells = max(0, width - len(left) - len(right))
    filled = cells * min(step, total) // max(1, total)
    return left, filled, cells - filled, right


class PlainLines:
    """One line a log step, at most one a second, but always the first and the last."""

    def __init__(self, stream: TextIO, total: int, clock: Callable[[], float] = time.monotonic):
        self._stream, self._total, self._clock = stream, total, clock
        self._printed_at: float | None = None
        self._pending: str | None = None

    def row(self, row: dict[str, Any], finish_at: float | None) -> None:
        """Show a training row; `finish_at` is the expected end on the clock."""
        fields = row_fields(row)
        for key, name in (("learning_rate", "lr"), ("grad_norm", "grad")):
            if row.get(key) is not None:
                fields.append(f"{name} {row[key]:.3g}")
        now, last = self._clock(), row["step"] >= self._total
        if finish_at is not None and not last:
            fields.append(f"ETA {clock_time(finish_at - now)}")
        # Kept until it may be printed: `close` prints it if no later row takes its place.
        self._pending = "  ".join([f"step {row['step']:,}/{self._total:,}", *fields])
        # The last row must not be held back: no other follows it.
        if last or self._printed_at is None or now - self._printed_at >= PLAIN_INTERVAL:
            self._flush()

    def line(self, text: str) -> None:
        """Print a line of its own at once."""
        # Standard error of a batch job is a file, which would hold lines back for minutes.
        print(text, file=self._stream, flush=True)

    def state(self, text: str) -> None:
        """Ignored here: only the bar shows what the run is doing."""

    def close(self) -> None:
        """Print the last row if throttling held it back."""
        self._flush()

    def _flush(self) -> None:
        if self._pending is not None:
            self.line(self._pending)
            self._pending, self._printed_at = None, self._clock()


class LiveBar:
    """The bottom line of the terminal, redrawn twice a second; other lines scroll above it."""

    def __init__(
        self, stream: TextIO, step: int, total: int, clock: Callable[[], float] = time.monotonic
    ):
        from rich.console import (
            Console,  # imported where used: a batch job never pays for it
        )
        from rich.live import Live

        self._total, self._clock = total, clock
        self._step, self._fields, self._finish_at, self._state = step, [], None, ""
        self._began, self._took = clock(), ""
        self._console = Console(file=stream, highlight=False)
        # Only what goes to this terminal may be drawn above the bar: `--json > file` must still
        # reach the file.
        self._live = Live(
            get_renderable=self._draw,
            console=self._console,
            refresh_per_second=2,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=stream is sys.stderr,
        )
        self._live.start(refresh=True)
        # rich hides the cursor, and a killed process could not show it again.
        self._console.show_cursor(True)

    def row(self, row: dict[str, Any], finish_at: float | None) -> None:
        """Show a training row; `finish_at` is the expected end on the clock."""
        self._step, self._fields, self._finish_at = row["step"], row_fields(row), finish_at

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        from rich.text import Text

        self._console.print(Text(text))

    def state(self, text: str) -> None:
        """What the run is busy with, such as "evaluating"; "" when it trains."""
        self._state = text

    def close(self) -> None:
        """Draw the bar a last time, with the time it took, and leave it on the screen."""
        self._finish_at, self._state, self._took = (
            None,
            "",
            f"took {clock_time(self._clock() - self._began)}",
        )
        self._live.stop()

    def _draw(self):
        from rich.text import Text

        fields = list(self._fields)
        if self._finish_at is not None and self._step < self._total:
            fields.append(f"ETA {clock_time(self._finish_at - self._clock())}")
        if self._took:
            fields.append(self._took)
        # A full last column wraps, and so would the ^C that a terminal echoes.
        width = self._console.width - 3
        left, filled, empty, right = bar_parts(width, self._step, self._total, fields, self._state)
        heavy, light = ("━", "─") if "utf" in (self._console.encoding or "") else ("#", "-")
        return Text.assemble(
            (left, "bold"),
            (heavy * filled, "cyan"),
            (light * empty, "bright_black"),
            right,
            no_wrap=True,
            overflow="crop",
        )


def open_display(
    stream: TextIO, step: int, total: int, live: bool | None, clock: Callable[[], float]
):
    """The bar where `stream` is a terminal that can redraw a line, plain lines otherwise; `live`
    overrules."""
    if live is None:
        # A dumb terminal, such as an editor's shell, cannot return to the start of a line.
        live = stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    return LiveBar(stream, step, total, clock) if live else PlainLines(stream, total, clock)
