"""A part of a run that does not get on within its limit ends the process; one that does, or that
was frozen, does not."""

import threading
import time

import jax.numpy as jnp
import pytest

from research.training import watchdog
from research.training.watchdog import Watchdog, WatchdogConfig


@pytest.fixture
def stacks(monkeypatch):
    printed = []
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback", printed.append)
    return printed


def test_what_hangs_is_named_and_ended(stacks):
    ended, lines = threading.Event(), []

    def end(line):
        lines.append(line)
        ended.set()

    with Watchdog(WatchdogConfig(save=0.2), end) as dog, dog.during("save"):
        assert ended.wait(10)
    assert stacks == [2] and "config.watchdog.save=0.2" in lines[0]


def test_signs_of_life_and_other_parts_have_their_own_time(stacks):
    lines = []
    with Watchdog(WatchdogConfig(step=0.5, evaluate=0.0), lines.append) as dog:
        with dog.during("step"):
            for _ in range(8):
                time.sleep(0.1)
                dog.dispatched(jnp.zeros(()))
                dog.drain()
            with dog.during("evaluate"):
                time.sleep(0.8)
    assert not lines and not stacks


def test_a_process_that_was_stopped_does_not_hang(stacks):
    # The clock of a process that was frozen for an hour each second look.
    times, lines, looks = iter([0.0, 3600.0, 3601.0, 7200.0]), [], iter([False] * 3 + [True])
    dog = Watchdog(WatchdogConfig(start=60.0), lines.append, lambda: next(times))
    dog._ended.wait = lambda _: next(looks)
    dog._watch()
    assert not lines
