"""A cell is worked on by one living process at a time, and by the next one when that is gone."""

import os
import subprocess
import sys
import threading
import time

import pytest

from research.files import read_json, write_json
from research.sweep.claims import _started, attempts, claim, held


def test_of_many_that_want_a_cell_one_gets_it(tmp_path):
    won, start = [], threading.Barrier(8)

    def want():
        start.wait()
        won.append(claim(tmp_path, 0))

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [one] = [one for one in won if one]
    assert one.number == attempts(tmp_path) == 1 and held(tmp_path)
    assert one.renew()


def test_a_claim_that_is_released_is_free_at_once(tmp_path):
    claim(tmp_path, 0).release("stopped")
    assert not held(tmp_path)
    assert claim(tmp_path, 5).number == 2


def test_a_process_of_this_machine_that_is_gone_holds_nothing(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    first = claim(tmp_path, 0)
    theirs = {"process": holder.pid, "began": _started(holder.pid)}
    write_json(first.file, {**read_json(first.file), **theirs})
    assert held(tmp_path) and claim(tmp_path, 0) is None
    holder.kill()
    holder.communicate()
    assert not held(tmp_path)
    assert claim(tmp_path, 0).number == 2
    # A new process may get the number of an old one.
    file = tmp_path / "claims" / "0002.json"
    write_json(file, {**read_json(file), "process": os.getpid(), "began": "1"})
    assert not held(tmp_path)


def test_a_process_of_another_machine_has_its_lease(tmp_path):
    first = claim(tmp_path, 0)
    write_json(first.file, {**read_json(first.file), "host": "elsewhere"})
    assert held(tmp_path, 60) and claim(tmp_path, 0, 60) is None
    os.utime(first.file, (time.time() - 61,) * 2)
    assert not held(tmp_path, 60)
    assert first.renew()  # it wakes up in time
    assert held(tmp_path, 60)
    os.utime(first.file, (time.time() - 61,) * 2)
    assert claim(tmp_path, 0, 60).number == 2
    assert not first.renew()  # too late: it must leave the cell alone


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_claim_that_is_only_begun_counts_by_its_time(tmp_path, text):
    (tmp_path / "claims").mkdir()
    file = tmp_path / "claims" / "0001.json"
    file.write_text(text)
    assert held(tmp_path, 60)
    os.utime(file, (time.time() - 61,) * 2)
    assert not held(tmp_path, 60)


def test_a_claim_that_a_full_disk_has_no_room_for_is_free_at_once(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="space"):
        patch.setattr("json.dump", full)
        claim(tmp_path, 0)
    assert not held(tmp_path) and claim(tmp_path, 0).number == 1
