"""Where a run's time went: every second of it is of one kind."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from research.training.events import EVENTS, Events, process_start, read_events
from research.training.goodput import KINDS, goodput
from research.training.report import write_report
from research.training.time_chart import time_chart
from tests.configs import ROOT


def begin(at, step=0, started=None):
    return {
        "time": at,
        "event": "begin",
        "step": step,
        "started": at if started is None else started,
    }


def pause(at, what, seconds):
    return {"time": at, "event": "pause", "what": what, "seconds": seconds}


def step(at, number, waited=0.0):
    return {"time": at, "event": "step", "step": number, "waited": waited}


# Ten seconds of start, five of compiling, ten steps of a second each with two of waiting.
FIRST = [begin(8, started=0), pause(15, "compiling", 5), step(15, 1), step(24, 10, waited=2)]
CASES = {
    "one process": (
        [*FIRST, pause(27, "saving", 3)],
        {"start": 10, "compiling": 5, "step": 7, "data": 2, "saving": 3},
    ),
    "killed and resumed at the last saved step": (
        [*FIRST, begin(102, 10, started=100), pause(105, "compiling", 1), step(106, 12)],
        {"start": 14, "compiling": 6, "step": 8, "data": 2, "down": 76},
    ),
    "what came after the saved step is lost, waiting too": (
        [*FIRST, begin(30, 4, started=24), pause(31, "compiling", 1), step(31, 5)],
        {"start": 16, "compiling": 6, "step": 7 / 3, "data": 2 / 3, "lost": 6},
    ),
    "time between steps that nothing explains is that of steps": (
        [*FIRST, pause(30, "evaluating", 2), pause(33, "saving", 1)],
        {"start": 10, "compiling": 5, "step": 13, "data": 2, "evaluating": 2, "saving": 1},
    ),
    "a killed process that had logged no step": (
        [begin(3, started=0), begin(9, started=7), pause(10, "compiling", 1)],
        {"start": 5, "down": 4, "compiling": 1},
    ),
    "a step on record twice, as at the end": (
        [*FIRST, step(24, 10), pause(27, "saving", 3), begin(30, 4, started=28)],
        {"start": 12, "compiling": 5, "step": 7 / 3, "data": 2 / 3, "lost": 6, "saving": 3}
        | {"down": 1},
    ),
    "a clock that was set back": (
        [begin(3, started=0), pause(5, "compiling", 2), step(4, 1), step(6, 2)],
        {"start": 3, "compiling": 2, "step": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_second_is_of_one_kind(case):
    events, wanted = CASES[case]
    spent = goodput(events)
    assert spent.seconds == pytest.approx({**dict.fromkeys(KINDS, 0.0), **wanted})
    ends = max(event["time"] for event in events)
    assert spent.total == pytest.approx(ends - events[0]["started"])


def test_events_come_back_and_a_torn_line_costs_itself_alone(tmp_path):
    events = Events(tmp_path, 0)
    events.step(1)
    with open(tmp_path / EVENTS, "a") as file:
        file.write('{"time": 1.0, "eve')
    again = Events(tmp_path, 1)
    with again.waiting():
        time.sleep(0.02)
    again.step(2)
    found = read_events(tmp_path)
    assert [event["event"] for event in found] == ["begin", "step", "begin", "step"]
    assert found[-1]["waited"] > 0.019 and found[1]["waited"] == 0.0
    assert found[0]["pid"] == os.getpid()
    assert Events(None, 0).pause("saving", 1.0) is None


def test_a_process_knows_when_it_started():
    source = "import time; from research.training.events import process_start as p; print(p())"
    before = time.time()
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True)
    # The kernel counts in hundredths of a second.
    assert before - 0.1 <= float(done.stdout) <= time.time() + 0.1
    assert process_start() < before


@pytest.mark.slow
def test_a_run_that_was_killed_adds_up_to_the_time_on_the_wall(tmp_path):
    command = [
        sys.executable, "-W", "ignore", "-m", "research.train", f"--workdir={tmp_path}",
        f"--config={ROOT}/configs/quickstart.py:smoke", "--config.train.steps=120",
        "--config.checkpoint.every=20", "--config.train.log_every=5", "--config.train.eval_every=0",
    ]  # fmt: skip
    quick = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    began = time.time()
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT, env=quick)
    while not any(event.get("step", 0) >= 45 for event in read_events(tmp_path)):
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    time.sleep(1.0)
    subprocess.run(command, stderr=subprocess.DEVNULL, cwd=ROOT, env=quick, check=True)
    # Until the last event: the report and the end of the process come after it.
    wall = (tmp_path / EVENTS).stat().st_mtime - began

    done = subprocess.run(
        [sys.executable, "-m", "research.goodput", str(tmp_path), "--json"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert told["processes"] == 2
    assert told["total"] == pytest.approx(wall, rel=0.02, abs=1.0)
    assert told["seconds"]["down"] > 0.9 and told["seconds"]["lost"] > 0
    assert told["goodput"] == pytest.approx(told["seconds"]["step"] / told["total"])
    assert "Where the time went" in write_report(tmp_path).read_text()


def test_the_picture_names_every_kind_that_there_is():
    shown = time_chart(goodput(CASES["one process"][0]))
    for kind in ("step", "start", "compiling", "data", "saving"):
        assert f"> {kind}</th>" in shown
    assert "> lost</th>" not in shown
    assert time_chart(goodput([begin(0.0)])) == ""
