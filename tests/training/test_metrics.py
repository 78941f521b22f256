"""The run log: rows that are exact and survive a resume, speeds that count training alone, a screen
that stays sane."""

import io
import itertools
import json
import math
import os
import struct
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event

from research.devices.table import DEVICES, memory_bandwidth, peak_flops
from research.training.metrics import RunLog, read_rows
from research.training.progress import bar_parts, clock_time, printable, short_number
from research.training.samples import Sample, append_sample, keep_samples, read_samples
from research.training.trackers import EventFile, in_background

CLOCKED = (
    "seconds",
    "tokens_per_second",
    "mfu",
)  # what depends on the time and so differs between equal runs


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def open_log(folder, total=100, **more):
    more.setdefault("stream", io.StringIO())
    return RunLog(folder, total, **more)


def strict(line):
    """Parse as JSON proper: Python's reader would let NaN pass."""
    return json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


# Rows


@settings(deadline=None, max_examples=50)  # each example opens files
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float32_comes_back_bit_for_bit(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("run")
    with open_log(folder) as log:
        log.step(1, {"loss": np.float32(value)}, tokens=1)
    (row,) = read_rows(folder / "metrics.jsonl")
    assert np.float32(row["loss"]).tobytes() == np.float32(value).tobytes()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stays_valid_json_and_is_told(tmp_path, value):
    stream = io.StringIO()
    with open_log(tmp_path, stream=stream) as log:
        log.step(1, {"loss": np.float32(value), "grad_norm": 1.0}, tokens=1)
    row = strict((tmp_path / "metrics.jsonl").read_text())
    assert (
        row["loss"] is None
        and row["nonfinite"] == {"loss": str(float(value))}
        and row["grad_norm"] == 1.0
    )
    assert f"loss is {float(value)}" in stream.getvalue()


def test_every_row_is_on_disk_when_the_call_returns(tmp_path):
    log = open_log(tmp_path)
    for step in (1, 2):
        log.step(step, {"loss": 1.0}, tokens=1)
        assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")][-1] == step
    log.close()


def test_a_metric_must_be_one_number(tmp_path):
    with open_log(tmp_path) as log, pytest.raises(ValueError, match="grad_norm.*one number"):
        log.step(1, {"grad_norm": np.ones(2)}, tokens=1)


def test_steps_are_logged_in_order(tmp_path):
    with open_log(tmp_path) as log:
        log.step(5, {"loss": 1.0}, tokens=1)
        with pytest.raises(ValueError, match="step 5 is logged after step 5"):
            log.step(5, {"loss": 1.0}, tokens=1)


def test_evaluation_names_get_their_prefix_once(tmp_path):
    with open_log(tmp_path) as log:
        log.evaluation(3, {"loss": 2.0, "eval/bits_per_byte": 1.5})
        assert log.evaluated_step == 3
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert row["eval/loss"] == 2.0 and row["eval/bits_per_byte"] == 1.5 and "loss" not in row


def test_other_processes_write_nothing(tmp_path):
    stream = io.StringIO()
    with open_log(tmp_path / "run", enabled=False, stream=stream) as log:
        with log.pause("evaluating"):
            log.step(1, {"loss": 1.0}, tokens=1)
        log.evaluation(1, {"loss": 1.0})
        log.sample(1, "a", "b")
        log.note("hello")
    assert not (tmp_path / "run").exists() and not stream.getvalue()


# Resuming


def play(folder, first, last, start_step=0):
    """The rows and samples of steps first..last as a train loop would log them."""
    with open_log(folder, start_step=start_step) as log:
        for step in range(first, last + 1):
            log.step(step, {"loss": np.float32(1 / step), "learning_rate": 0.1}, tokens=7)
            if step % 3 == 0:
                log.evaluation(step, {"loss": 1.0 + 1 / step})
                log.sample(step, "def ", f'f{step}():\n    # step 9, prompt "x"\n')


def unclocked(folder):
    rows = read_rows(folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in CLOCKED} for row in rows]


@pytest.mark.parametrize("torn", ["", '{"step": 9, "lo', "\n"])
def test_a_resumed_run_logs_what_an_uninterrupted_one_does(tmp_path, torn):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    play(whole, 1, 12)
    play(broken, 1, 8)
    with open(broken / "metrics.jsonl", "a") as file:
        file.write(torn)  # the process died in the middle of a row
    play(broken, 6, 12, start_step=5)
    assert unclocked(broken) == unclocked(whole)
    assert (broken / "samples.txt").read_bytes() == (whole / "samples.txt").read_bytes()


def test_time_goes_on_where_the_kept_rows_end(tmp_path, clock):
    with open_log(tmp_path, clock=clock) as log:
        clock.now += 30
        log.step(10, {"loss": 1.0}, tokens=1)
        clock.now += 30
        log.step(20, {"loss": 1.0}, tokens=1)
    with open_log(tmp_path, clock=clock, start_step=10) as log:
        clock.now += 5
        log.step(20, {"loss": 1.0}, tokens=1)
    assert [row["seconds"] for row in read_rows(tmp_path / "metrics.jsonl")] == [30, 35]


def test_evaluated_step_tells_a_resumed_loop_what_it_owes(tmp_path):
    play(tmp_path, 1, 8)
    for start, owed in ((8, 6), (5, 3), (2, None)):
        with open_log(tmp_path, start_step=start) as log:
            assert log.evaluated_step == owed


def test_a_run_from_the_beginning_drops_what_a_dead_one_left(tmp_path):
    with open_log(tmp_path) as log:
        log.evaluation(0, {"loss": 9.0})
        log.sample(0, "a", "b")
    open_log(tmp_path).close()
    assert (
        read_rows(tmp_path / "metrics.jsonl") == [] and read_samples(tmp_path / "samples.txt") == []
    )


def test_a_damaged_row_is_named_and_nothing_is_lost(tmp_path):
    play(tmp_path, 1, 3)
    path = tmp_path / "metrics.jsonl"
    damaged = path.read_text().replace('"step": 2', '"step" 2')
    path.write_text(damaged)
    with pytest.raises(ValueError, match="metrics.jsonl line 2"):
        open_log(tmp_path, start_step=3)
    assert path.read_text() == damaged


# Speed


def test_speed_counts_all_steps_since_the_last_row_and_no_paused_time(tmp_path, clock):
    with open_log(tmp_path, clock=clock, flops_per_token=10.0, peak_flops=8000.0) as log:
        with log.pause("compiling"):
            clock.now += 50
        clock.now += 2
        log.step(4, {"loss": 1.0}, tokens=100)  # 4 steps of 100 tokens in 2 s
        with log.pause("evaluating"):
            clock.now += 7
            with log.pause():
                clock.now += 3
        clock.now += 1
        log.step(10, {"loss": 1.0}, tokens=100)  # 6 steps in 1 s
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["tokens_per_second"] for row in rows] == [200.0, 600.0]
    assert [row["mfu"] for row in rows] == [0.25, 0.75]
    assert [row["tokens"] for row in rows] == [400, 1000]


def test_steps_run_inside_a_pause_do_not_count(tmp_path, clock):
    with open_log(tmp_path, clock=clock, flops_per_token=1.0, peak_flops=1.0) as log:
        with log.pause("first step", steps=1):
            clock.now += 49.5
        clock.now += 0.5
        log.step(1, {"loss": 1.0}, tokens=100)
        clock.now += 2
        log.step(3, {"loss": 1.0}, tokens=100)
    first, second = read_rows(tmp_path / "metrics.jsonl")
    assert (
        first["tokens_per_second"] == 2.0 and "mfu" not in first
    )  # nothing but the pause to measure by
    assert second["tokens_per_second"] == second["mfu"] == 100.0


@pytest.mark.parametrize("known", [{}, {"flops_per_token": 1.0}, {"peak_flops": 1.0}])
def test_utilisation_is_left_out_where_a_figure_is_missing(tmp_path, known):
    with open_log(tmp_path, **known) as log:
        log.step(1, {"loss": 1.0}, tokens=1)
    assert "mfu" not in read_rows(tmp_path / "metrics.jsonl")[0]


def test_the_peak_of_an_unknown_chip_is_none():
    for kind in ("cpu", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "TPU v99", ""):
        assert peak_flops(kind) is None and memory_bandwidth(kind) is None
    assert (
        peak_flops("Tesla T4") is None and peak_flops("Tesla T4", "float16") == 65e12
    )  # no bfloat16 in hardware
    assert (
        peak_flops("NVIDIA H100 80GB HBM3", "float32") is None
    )  # which unit runs it is not known from the type


def test_peaks_are_per_device_and_dense():
    assert (
        peak_flops("TPU v3") == 123e12 / 2 and peak_flops("TPU7x", "float8_e4m3fn") == 4614e12 / 2
    )
    assert peak_flops("TPU v5 lite") == peak_flops("TPU v5e") == 197e12
    assert (
        peak_flops("NVIDIA H100 80GB HBM3") == 989.4e12
        and memory_bandwidth("NVIDIA H100 80GB HBM3") == 3.35e12
    )
    for kind, chip in DEVICES.items():
        # Hardware runs 8-bit products at one to four times the 16-bit rate; a sparse figure among
        # dense ones breaks this.
        wide = chip.flops.get("bfloat16") or chip.flops["float16"]
        assert all(
            1 <= value / wide <= 4.001 for name, value in chip.flops.items() if name.endswith("8")
        ), kind
        assert 0.48 <= chip.flops.get("tfloat32", wide / 2) / wide <= 0.51, kind


# The screen


def test_plain_lines_are_rare_but_first_and_last_are_there(tmp_path, clock, capsys):
    stream = io.StringIO()
    with open_log(tmp_path, 1000, stream=stream, clock=clock) as log:
        for step in range(1, 1001):
            clock.now += 0.01
            log.step(step, {"loss": 2.5, "learning_rate": 3e-4, "grad_norm": 0.5}, tokens=100)
        lines = stream.getvalue().splitlines()
    assert stream.getvalue().splitlines() == lines  # closing has nothing to add
    assert lines[0].startswith("step 1/1,000  loss 2.5000  10k tok/s") and lines[-1].startswith(
        "step 1,000/1,000"
    )
    assert 10 <= len(lines) <= 12  # 10 s of training
    assert "ETA 0:10" in lines[0] and "ETA" not in lines[-1]
    assert capsys.readouterr().out == ""  # standard output belongs to the program's result


def test_the_last_row_is_shown_although_it_came_too_soon(tmp_path, clock):
    stream = io.StringIO()
    with open_log(tmp_path, stream=stream, clock=clock) as log:
        log.step(1, {"loss": 2.0}, tokens=1)
        log.step(2, {"loss": 1.0}, tokens=1)
    assert [line[:6] for line in stream.getvalue().splitlines()] == ["step 1", "step 2"]


def test_the_time_left_includes_evaluations(tmp_path, clock):
    stream = io.StringIO()
    with open_log(tmp_path, 100, stream=stream, clock=clock) as log:
        with log.pause("compiling"):
            clock.now += 1000  # happens once, so it must not be expected again
        for step in (10, 20):
            clock.now += 10
            log.step(step, {"loss": 1.0}, tokens=1)
            with log.pause("evaluating"):
                clock.now += 10
        clock.now += 10
        log.step(30, {"loss": 1.0}, tokens=1)
    # 30 steps in 50 s, so 70 steps in 117 s
    assert stream.getvalue().splitlines()[-1].endswith("ETA 1:57")


def test_an_evaluation_is_shown_beside_gzip(tmp_path):
    stream = io.StringIO()
    with open_log(tmp_path, stream=stream) as log:
        log.evaluation(400, {"loss": 1.25, "bits_per_byte": 1.5, "gzip_bits_per_byte": 1.92})
    assert stream.getvalue() == "eval 400  loss 1.2500  bits per byte 1.5000 (gzip 1.9200)\n"


@given(
    width=st.integers(20, 200),
    total=st.integers(1, 10**7),
    share=st.floats(0, 1),
    fields=st.lists(st.text("abc 123", max_size=30), max_size=4),
    state=st.sampled_from(["", "evaluating"]),
)
def test_the_bar_fills_the_line_and_never_more(width, total, share, fields, state):
    step = round(total * share)
    left, filled, empty, right = bar_parts(width, step, total, fields, state)
    assert len(left) + filled + empty + len(right) == max(width, len(left))
    assert filled + empty >= 10 or not right  # words never squeeze the bar
    assert filled == (filled + empty) * step // total


@pytest.fixture
def terminal(monkeypatch):
    """A pseudo-terminal of 80 columns as (stream, function that returns what was written since)."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    master, slave = os.openpty()
    os.set_blocking(master, False)
    stream = os.fdopen(slave, "w", encoding="utf-8")

    def written():
        stream.flush()
        parts = []
        while True:
            try:
                parts.append(os.read(master, 65536))
            except BlockingIOError:
                return b"".join(parts).decode()

    yield stream, written
    stream.close()
    os.close(master)


def test_the_terminal_is_sane_at_every_moment(tmp_path, terminal):
    stream, written = terminal
    with pytest.raises(KeyboardInterrupt), RunLog(tmp_path, 50, stream=stream) as log:
        opened = written()
        assert opened.rfind("\x1b[?25h") > opened.rfind(
            "\x1b[?25l"
        )  # the cursor is there even if the process is killed now
        log.step(25, {"loss": 2.5}, tokens=100)
        log.note("hello")
        raise KeyboardInterrupt
    text = written()
    assert "hello" in text and "25/50" in text and "loss 2.5000" in text and "took 0:0" in text
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") and text.rstrip(
        "\x1b[?25h\r"
    ).endswith("\n")


def test_a_terminal_that_cannot_redraw_gets_plain_lines(tmp_path, terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream, written = terminal
    with RunLog(tmp_path, 50, stream=stream) as log:
        log.step(25, {"loss": 2.5}, tokens=100)
    assert written().startswith("step 25/50  loss 2.5000")


@given(st.text())
def test_what_a_model_writes_cannot_steer_the_terminal(text):
    assert all(character.isprintable() or character in "\n\t" for character in printable(text))


@pytest.mark.parametrize(
    "value, shown",
    [
        (0, "0"),
        (999.4, "999"),
        (999.9, "1k"),
        (45_210, "45.2k"),
        (999_900, "1M"),
        (8.03e9, "8.03B"),
    ],
)
def test_short_numbers(value, shown):
    assert short_number(value) == shown


@pytest.mark.parametrize(
    "value, shown",
    [(5, "0:05"), (59.6, "1:00"), (3723, "1:02:03"), (187_200, "2d 04:00"), (-1, "0:00")],
)
def test_clock_times(value, shown):
    assert clock_time(value) == shown


# Samples


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 9), st.text(), st.text()), max_size=4), st.integers(0, 9))
def test_samples_come_back_as_they_were(tmp_path_factory, samples, last):
    path = tmp_path_factory.mktemp("run") / "samples.txt"
    samples = [Sample(*sample) for sample in samples]
    for sample in samples:
        append_sample(path, sample)
    assert read_samples(path) == samples
    keep_samples(path, last)
    assert read_samples(path) == [sample for sample in samples if sample.step <= last]


# Trackers


def scalars(folder):
    """The events of every file as (file, step, name, value), with ("session", step) for a purge."""
    for path in sorted(folder.iterdir(), key=os.path.getmtime):
        data, place = path.read_bytes(), 0
        while place < len(data):  # TFRecord: length, its checksum, data, its checksum
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length
            if event.HasField("session_log"):
                yield path.name, event.step, "session", None
            yield from (
                (path.name, event.step, value.tag, value.simple_value)
                for value in event.summary.value
            )


def test_tensorboard_gets_the_values_and_forgets_the_future(tmp_path):
    play(tmp_path, 1, 3)
    play(tmp_path, 3, 4, start_step=2)
    events = list(scalars(tmp_path / "tensorboard"))
    assert [(step, value) for _, step, name, value in events if name == "loss"] == [
        (step, np.float32(1 / step)) for step in (1, 2, 3, 3, 4)
    ]
    assert [step for _, step, name, _ in events if name == "session"] == [1, 3]
    assert len({name for name, *_ in events}) == 2  # two processes within a second keep two files


def test_wandb_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        open_log(tmp_path, wandb=True)


def test_wandb_gets_the_values_and_resumes_its_run(tmp_path, monkeypatch):
    starts, logged = [], []

    def init(**settings):
        starts.append(settings)
        return types.SimpleNamespace(
            log=lambda values, step: logged.append((step, values)), finish=lambda: None
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for start in (0, 1):
        with open_log(tmp_path, wandb=True, config={"seed": 3}, start_step=start) as log:
            log.step(start + 1, {"loss": 2.0}, tokens=1)
    assert [(step, values["loss"]) for step, values in logged] == [(1, 2.0), (2, 2.0)]
    assert starts[0]["id"] == starts[1]["id"] and starts[0]["config"] == {"seed": 3}


def test_a_tracker_that_fails_is_left_out_with_one_line_and_the_run_goes_on(tmp_path):
    # /dev/full takes no byte, as a full disk.
    with pytest.raises(OSError, match="No space left"):
        EventFile(Path("/dev/full"), 1)
    broken = []

    def refuse(step, values):
        broken.append(step)
        raise ConnectionError("the service is away")

    stream = io.StringIO()
    with open_log(tmp_path, stream=stream, live=False) as log:
        log._trackers["W&B"] = (refuse, lambda: None)
        for step in (1, 2, 3):
            log.step(step, {"loss": 1.0}, tokens=1)
    assert broken == [1] and len(read_rows(tmp_path / "metrics.jsonl")) == 3
    assert stream.getvalue().count("W&B gets no values from step 1 on: the service is away") == 1


def test_a_tracker_that_cannot_be_opened_is_left_out(tmp_path):
    (tmp_path / "tensorboard").write_text("no folder")
    stream = io.StringIO()
    with open_log(tmp_path, stream=stream, live=False) as log:
        log.step(1, {"loss": 1.0}, tokens=1)
    assert "TensorBoard gets no values: " in stream.getvalue()
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 1


def test_a_service_that_hangs_keeps_no_step_back():
    answer, taken = threading.Event(), []

    def hang(step, values):
        answer.wait(60)
        taken.append(step)

    write, close = in_background((hang, lambda: None), waiting=2, farewell=0.01)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="not taken 2 steps"):
        for step in range(4):
            write(step, {})
    close()
    assert time.monotonic() - began < 5 and taken == []
    answer.set()


def test_an_error_of_a_service_reaches_the_log():
    def refuse(step, values):
        raise ConnectionError("away")

    write, close = in_background((refuse, lambda: None))
    with pytest.raises(ConnectionError, match="away"):
        for step in range(1000):
            write(step, {})
            time.sleep(0.01)
    close()


def test_closing_twice_is_safe(tmp_path):
    log = open_log(tmp_path)
    for _ in itertools.repeat(None, 2):
        log.close()
        assert not log.enabled
