"""`RunLog`: a training loop's metrics, notes and samples, sent to screen, files and trackers."""

import json
import math
import numbers
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from research.files import write_text
from research.training.events import Events
from research.training.progress import evaluation_line, open_display, printable
from research.training.samples import Sample, append_sample, keep_samples
from research.training.trackers import Tracker, open_tensorboard, open_wandb

Row = dict[str, Any]
SAMPLE_SHOWN = 400  # characters of a sample on the screen; the file has all of it


class RunLog:
    """Progress, `metrics.jsonl`, `samples.txt`, `events`, TensorBoard and W&B of one run, as a
    context manager.

        with RunLog(workdir, total_steps=100) as log:
            log.step(1, {"loss": 3.2}, tokens=4096)
            log.evaluation(1, {"loss": 3.3})

    `metrics.jsonl` has one JSON object a line, and all of it is on disk after every call. A
    training row has `step`, the loop's metrics (`loss` is the exact float32), `tokens_per_second`,
    `seconds` and `tokens` since the run began, and `mfu` (model FLOP utilisation, 0 to 1) if both
    FLOP figures are known. An evaluation row has `step`, `eval/...` and `seconds`. JSON has no NaN
    or infinity: such a value is null, and `nonfinite` has its text ("nan", "inf") by name.

    Time inside `pause()` does not count for `tokens_per_second`. With `enabled=False`, which all
    processes but the first use, every call does nothing.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        total_steps: int,
        *,
        start_step: int = 0,
        flops_per_token: float | None = None,
        peak_flops: float | None = None,
        wandb: bool = False,
        config: Mapping[str, Any] | None = None,
        enabled: bool = True,
        live: bool | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Open the log of a run that has done `start_step` steps of `total_steps`.

        Rows of an earlier process after `start_step` are dropped, because those steps run again; a
        new run (0) drops all. `flops_per_token` is for forward and backward, `peak_flops` the
        FLOP/s of all devices together. `config` is passed to W&B. `live` chooses a bar (True) or
        lines (False); None chooses the bar if `stream`, by default standard error, is a terminal.
        """
        self.enabled = enabled
        # The last step with an evaluation row, possibly written by an earlier process.
        self.evaluated_step: int | None = None
        self._clock, self._step, self._total = clock, start_step, total_steps
        self._utilisation = flops_per_token / peak_flops if flops_per_token and peak_flops else None
        # `mark` is the time of the last logged step, from which the speed is measured.
        self._mark = self._began = clock()
        # Since the last logged step: seconds in pauses, pauses that are open now (they nest), and
        # steps that ran inside a pause.
        self._paused, self._pauses, self._uncounted = 0.0, 0, 0
        # (time, step) at the first logged step, from which the remaining time is estimated.
        self._origin: tuple[float, int] | None = None
        # One line about values that are not finite is enough for a run.
        self._warned = False
        self._workdir = Path(workdir)
        self.events = Events(self._workdir if enabled else None, start_step)
        if not enabled:
            return
        # As if the run had never stopped: `seconds` goes on from the last row kept.
        self._began -= self._keep_rows(start_step)
        keep_samples(self._workdir / "samples.txt", start_step if start_step else -1)
        self._file = open(self._workdir / "metrics.jsonl", "a", encoding="utf-8")
        self._display = open_display(stream or sys.stderr, start_step, total_steps, live, clock)
        self._trackers: dict[str, Tracker] = {}
        if wandb:
            self._track("W&B", lambda: open_wandb(self._workdir, config))
        folder = self._workdir / "tensorboard"
        self._track("TensorBoard", lambda: open_tensorboard(folder, start_step))

    def step(self, step: int, values: Mapping[str, Any], tokens: int) -> None:
        """Log a training step on `tokens` tokens (batch size times length).

        The speed is the mean since the last call, without pauses unless all steps since then ran
        inside one. `values` are scalars of any array library; fetch them from the device together
        before the call, because fetching them one by one is slow.
        """
        if not self.enabled:
            return
        if step <= self._step and self._origin:
            raise ValueError(
                f"step {step} is logged after step {self._step}; log steps in order, each once"
            )
        now = self._clock()
        # Steps run inside a pause, such as the first one, which compiles, count for neither.
        busy, steps = now - self._mark - self._paused, step - self._step - self._uncounted
        speed = steps * tokens / busy if steps > 0 and busy > 0 else None
        row = {
            "step": step,
            **values,
            "tokens_per_second": speed or self._speed_with_pauses(step, tokens, now),
        }
        row |= {"seconds": now - self._began, "tokens": step * tokens}
        self._origin = self._origin or (now - busy, step - steps)
        if self._utilisation and speed:
            row["mfu"] = speed * self._utilisation
        row = self._write(row)
        self.events.step(step)
        # The pace over the whole process, pauses included, is what the time left will look like.
        pace = (
            (now - self._origin[0]) / (step - self._origin[1]) if step > self._origin[1] else None
        )
        self._display.row(row, None if pace is None else now + (self._total - step) * pace)
        self._step, self._mark, self._paused, self._uncounted = step, self._clock(), 0.0, 0

    def evaluation(self, step: int, values: Mapping[str, Any]) -> None:
        """Log an evaluation. A name without a slash is written as `eval/<name>`, one with a slash
        as it is."""
        self.evaluated_step = step
        if not self.enabled:
            return
        named = {name if "/" in name else f"eval/{name}": value for name, value in values.items()}
        row = self._write({"step": step, **named, "seconds": self._clock() - self._began})
        self._display.line(evaluation_line(row))

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Append a continuation to `samples.txt` and show its beginning."""
        if not self.enabled:
            return
        append_sample(self._workdir / "samples.txt", Sample(step, prompt, text))
        shown = (prompt + text).rstrip("\n")
        shown = shown[:SAMPLE_SHOWN] + ("…" if len(shown) > SAMPLE_SHOWN else "")
        self.note(f"sample {step:,}\n" + "\n".join(f"  | {line}" for line in shown.split("\n")))

    def note(self, line: str) -> None:
        """Show a line on the screen only."""
        if self.enabled:
            self._display.line(printable(line))

    @contextmanager
    def pause(self, what: str = "", steps: int = 0) -> Iterator[None]:
        """A context whose time does not count for the speed, such as evaluation, saving, compiling.
        The bar shows `what`. `steps` is the number of training steps run inside, which do not count
        either."""
        start = self._clock()
        self._pauses += 1
        if self.enabled:
            self._display.state(what)
        try:
            yield
        finally:
            self._pauses -= 1
            # Only the outermost pause counts: saving inside an evaluation is one stretch of time.
            if not self._pauses:
                self._paused += self._clock() - start
                self.events.pause(what, self._clock() - start)
            if self.enabled:
                self._display.state("")
            self._uncounted += steps

    def close(self) -> None:
        """Close screen, files and trackers; may be called twice. The screen comes first, so that an
        error of the others leaves the terminal usable."""
        if not self.enabled:
            return
        self.enabled = False
        self._display.close()
        self._file.close()
        for _, close in self._trackers.values():
            close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def _speed_with_pauses(self, step: int, tokens: int, now: float) -> float | None:
        return (step - self._step) * tokens / (now - self._mark) if now > self._mark else None

    def _keep_rows(self, start_step: int) -> float:
        """Drop the rows after `start_step` from the file. Returns the seconds that the run had
        taken by the last row kept."""
        path = self._workdir / "metrics.jsonl"
        # A run that was killed has logged steps after its last checkpoint; they are run and logged
        # again.
        rows = read_rows(path)
        # A new run has start_step 0 and keeps none.
        kept = [row for row in rows if 0 < start_step >= row["step"]]
        text = "".join(_line(row) for row in kept)
        if path.exists() and path.read_bytes() != text.encode():
            write_text(path, text)
        evaluated = [row["step"] for row in kept if any(name.startswith("eval/") for name in row)]
        self.evaluated_step = max(evaluated, default=None)
        return max((row.get("seconds") or 0.0 for row in kept), default=0.0)

    def _track(self, name: str, open_tracker: Callable[[], Tracker]) -> None:
        """Opens a tracker. What is wrong with its service or its disk is said, and the run goes on
        without it: the metrics are in metrics.jsonl anyway."""
        try:
            self._trackers[name] = open_tracker()
        except BaseException as error:
            # A ValueError is a package that is missing: said before the first step.
            if isinstance(error, Exception) and not isinstance(error, ValueError):
                self.note(f"{name} gets no values: {error}")
                return
            self._display.close()
            self._file.close()
            raise

    def _write(self, values: Row) -> Row:
        """Write a row to the file and the trackers. Returns it as written to the file."""
        # An absent value, such as an unknown speed, stays null in the row and is no point of a
        # tracker's curve.
        exact = {name: _number(name, value) for name, value in values.items() if value is not None}
        odd = {name: str(value) for name, value in exact.items() if not math.isfinite(value)}
        row = {name: None if name in odd else exact.get(name) for name in values}
        if odd:
            row["nonfinite"] = odd
            if not self._warned:
                self._warned = True
                values_shown = ", ".join(f"{name} is {value}" for name, value in odd.items())
                self.note(f"step {row['step']:,}: {values_shown}")
        self._file.write(_line(row))
        # A process that crashes then loses no logged row.
        self._file.flush()
        step = exact.pop("step")
        for name, (write, close) in list(self._trackers.items()):
            try:
                write(step, exact)
            except Exception as error:
                del self._trackers[name]
                close()
                self.note(f"{name} gets no values from step {step:,} on: {error}")
        return row


def read_rows(path: str | os.PathLike) -> list[Row]:
    """The rows of a `metrics.jsonl` in file order; [] if there is no file.

    An incomplete last line, which a crash leaves, is skipped. ValueError with the line number for
    any other line that is not a JSON object of numbers with a whole `step`.
    """
    if not Path(path).exists():
        return []
    lines = Path(path).read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append({"step": row.pop("step"), **row})
            _require_numbers(rows[-1])
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
            # A complete file ends in a line break, so its last line is empty. Only a line that a
            # crash cut short is last and not empty.
            if number < len(lines):
                raise ValueError(
                    f"{path} line {number} is not a row of numbers with a whole step; "
                    "mend or remove that line"
                ) from None
    return rows


def _require_numbers(row: Row) -> None:
    """ValueError unless the step is a whole number and every other value a number or null."""
    kinds = {type(value) for name, value in row.items() if name not in ("step", "nonfinite")}
    if type(row["step"]) is not int or not kinds <= {int, float, type(None)}:
        raise ValueError(row)


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _number(name: str, value: Any) -> int | float:
    """The exact value as a Python number, which holds float32 and narrower types exactly."""
    try:
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"metric {name!r} is {value!r}; log one number, such as its mean"
        ) from None
