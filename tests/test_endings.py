"""How processes of one job end: together, soon, and with the code that tells a launcher whether to
start them again."""

import signal
import time

import pytest

from tests.job import finish, said, start

LONG = ("mesh=fsdp:-1", "train.steps=1000000", "train.log_every=1", "train.eval_every=0")
# At the third step of process 1; process 0 sleeps there, so that no collective tells it anything.
AT_STEP = """
import time
from research.run import loop
taken, take_step, count = [], loop.take_step, 0
def at_step(program, state, feed):
    taken.append(1)
    if len(taken) == 3:
        {what}
    return take_step(program, state, feed)
loop.take_step = at_step
"""
RAISE = AT_STEP.format(what='time.sleep(300 * (PROCESS == 0)); raise ValueError("a bad record")')
HANG = AT_STEP.format(what="time.sleep(300 * (PROCESS == 1))")


@pytest.mark.slow
def test_a_request_to_stop_one_process_stops_all_after_one_step(tmp_path):
    job = start(tmp_path / "run", 2, *LONG, devices=2)
    said(job[0], "step 3")
    job[1].send_signal(signal.SIGINT)
    (code, errors), (other, _) = finish(job)
    assert code == other == 42, errors
    assert "is saved in" in errors and "Traceback" not in errors


@pytest.mark.slow
def test_a_process_that_fails_alone_takes_the_others_with_it(tmp_path):
    job = start(tmp_path / "run", 2, *LONG, devices=2, first=RAISE)
    said(job[1], "a bad record")
    begun = time.monotonic()
    (survivor, errors), (failed, _) = finish(job)
    assert time.monotonic() - begun < 10
    assert failed == 1 and survivor == 42
    assert "process 1" in errors and "has failed with exit code 1" in errors


@pytest.mark.slow
def test_a_process_that_hangs_ends_all_with_their_stacks(tmp_path):
    job = start(tmp_path / "run", 2, *LONG, "watchdog.step=2", devices=2, first=HANG)
    for code, errors in finish(job):
        assert code == 42, errors
        assert "most recent call first" in errors and "config.watchdog.step=2" in errors
