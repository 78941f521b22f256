"""What a run came to: the record of its cell, from its run directory."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from research import command
from research.training.metrics import Row, read_rows
from research.training.restore import committed_steps

CURVE_POINTS = 100  # most points of a curve in a record
NOT_FINITE = "NaN or infinite"  # the words with which a run ends that has diverged


def outcome(
    run: Path, metrics: Mapping[str, str], code: int | None, error: str, stopped: str = ""
) -> dict[str, Any]:
    """The entries of a record that say how a run has ended: `state`, `reason`, `metrics`, `curves`,
    `seconds` and `tokens`.

    code    exit code of the run; None if its cell could not be run
    error   the last line that it printed
    stopped why halving stopped it, "" for a run that ended by itself

    A run is "diverged" if its numbers became NaN or infinite, whether it ended on that or not;
    "stopped" if halving chose others; "done" if it ended well and has a last evaluation; otherwise
    "failed".
    """
    try:
        rows = read_rows(run / "metrics.jsonl")
    except ValueError as damaged:
        return {"state": "failed", "reason": str(damaged)}
    last = next((row for row in reversed(rows) if _is_evaluation(row)), {})
    facts: dict[str, Any] = {
        "seconds": max((row.get("seconds") or 0.0 for row in rows), default=0.0),
        "tokens": max((row.get("tokens") or 0 for row in rows), default=0),
        "metrics": {name: last.get(name) for name in last if name not in ("step", "seconds")},
        "first": _first(rows, metrics),
        "curves": _curves(rows, metrics),
    }
    facts["metrics"].pop("nonfinite", None)
    missing = [name for name in metrics if name not in last]
    odd = [row for row in rows if _is_odd(row, metrics)]
    if odd or NOT_FINITE in error:
        reason = error if code else f"not finite from step {odd[0]['step']:,} on"
        return {"state": "diverged", "reason": reason, **facts}
    if stopped:
        return {"state": "stopped", "reason": stopped, **facts}
    if code != command.DONE:
        return {"state": "failed", "reason": error or f"ended with exit code {code}", **facts}
    if missing:
        there = ", ".join(facts["metrics"]) or "nothing"
        reason = f"its last evaluation has no {missing[0]!r}, but {there}"
        return {"state": "failed", "reason": reason, **facts}
    return {"state": "done", "reason": "", **facts}


def checkpoint_step(run: Path) -> int:
    """The step of the newest checkpoint, 0 without one."""
    folder = run / "checkpoints"
    return max(committed_steps(folder), default=0) if folder.is_dir() else 0


def log_size(log: Path) -> int:
    """The bytes that a log has, 0 where it is missing."""
    try:
        return log.stat().st_size
    except OSError:
        return 0


def last_line(log: Path, after: int = 0) -> str:
    """The last line of an error that a run has printed behind the first `after` bytes, those of
    attempts before it, without its "error: "; "" for none."""
    try:
        lines = log.read_bytes()[after:].decode(errors="replace").splitlines()
    except OSError:
        return ""
    lines = [line.strip() for line in lines if line.strip()]
    told = [line for line in lines if line.startswith("error: ")]
    return (told or lines or [""])[-1].removeprefix("error: ")[:500]


def now() -> str:
    """This moment, as records have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _is_evaluation(row: Row) -> bool:
    return any(name.startswith("eval/") for name in row)


def _is_odd(row: Row, metrics: Mapping[str, str]) -> bool:
    """True if the loss, or a metric that is asked for, is not finite."""
    return any(name in ("loss", *metrics) for name in row.get("nonfinite", {}))


def _first(rows: Sequence[Row], metrics: Mapping[str, str]) -> dict[str, float]:
    """The first value of each metric and of the loss: about that of a model that knows nothing."""
    first: dict[str, float] = {}
    for row in rows:
        for name in ("loss", *metrics):
            value = row.get(name)
            if value is not None and math.isfinite(value):
                first.setdefault(name, value)
    return first


def _curves(rows: Sequence[Row], metrics: Mapping[str, str]) -> dict[str, list[list[float]]]:
    """[tokens, value] pairs of the training loss and of the metrics by name, thinned. Tokens of
    an evaluation are those of the training row of its step."""
    tokens = {row["step"]: row["tokens"] for row in rows if "tokens" in row}
    per_step = next((seen / step for step, seen in tokens.items() if step), 0)
    curves: dict[str, list[list[float]]] = {name: [] for name in ("loss", *metrics)}
    for row in rows:
        for name, curve in curves.items():
            if row.get(name) is not None:
                curve.append([tokens.get(row["step"], row["step"] * per_step), row[name]])
    return {name: _thin(curve) for name, curve in curves.items()}


def _thin(curve: list[list[float]]) -> list[list[float]]:
    """At most about `CURVE_POINTS` of the points, the last one among them."""
    step = max(1, math.ceil(len(curve) / CURVE_POINTS))
    return curve[::-1][::step][::-1]
