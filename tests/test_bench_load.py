"""The benchmark of loading: what it writes, its arithmetic, its two contenders; nothing is
timed."""

import json
import os

import jax
import numpy as np
import pytest

from research import tree
from research.bench import load as bench
from research.bench import load_contender, turns
from research.interop.load import load
from tests.families import FAMILIES

GIB = 2**30


def test_rows_compare_with_the_plain_read_of_the_same_run():
    timed = {
        bench.READ: {"seconds": 2.0, "all_seconds": [2.0], "peak_bytes": GIB // 4},
        bench.LOAD: {"seconds": 3.0, "all_seconds": [3.0], "peak_bytes": GIB // 4 + 4 * GIB + 64},
    }
    read, ours = bench.rows(timed, 4 * GIB, largest=128)
    assert (read["ratio"], ours["ratio"], ours["beyond"]) == (1.0, 1.5, 0.5)
    assert ours["gb_per_second"] == pytest.approx(4 * GIB / 3e9)
    header, *lines = bench.table([read, ours]).splitlines()
    assert lines[1].split() == ["graft", "3.00", "1.43", "1.50", "4563", "0.50"]
    assert len(header) == len(lines[0]) == len(lines[1])
    json.dumps([read, ours])


def test_a_generated_model_has_the_size_that_was_asked_for():
    for gib in (0.5, 4.0):
        c = bench.generated(gib)
        shapes = [spec.shape for spec in bench.specs_by_path(c).values()]
        assert sum(2 * np.prod(shape) for shape in shapes) / GIB == pytest.approx(gib, rel=0.1)


def test_contenders_read_all_that_was_written(tmp_path, monkeypatch):
    largest = bench.write(FAMILIES["llama2_7b"], tmp_path, shard_bytes=30_000)
    paths = bench.files(tmp_path)
    assert len(paths) > 1
    bench.forget(paths)
    # A buffer smaller than the files, of which the last read is in part.
    monkeypatch.setattr(load_contender, "_BUFFER_BYTES", 1001)
    load_contender.plain_read(tmp_path)
    load_contender.kept_read(tmp_path)
    load_contender.loaded(tmp_path)
    params = tree.paths(load(tmp_path, "bfloat16").params)
    assert largest == max(x.nbytes for name, x in params.items() if not name.startswith("layers"))
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(params))


class Answers:
    """A contender that takes 1 second at first and 2 later."""

    def __init__(self, name, started):
        started.append(name)
        self.turns, self.process = 0, self

    def ask(self, word):
        self.turns += word == "run"
        return {"seconds": float(self.turns)} if word == "run" else {"peak_bytes": 8}

    def kill(self):
        pass


def test_with_fresh_processes_the_first_turn_of_each_counts(monkeypatch):
    started, dropped = [], []
    monkeypatch.setattr(turns, "start", lambda module, name, allocator: Answers(name, started))
    timed = turns.take_fresh_turns("m", ["a", "b"], 2, before=lambda: dropped.append(started[-1]))
    assert started == dropped == ["a", "b", "a", "b"]
    assert timed["b"] == {"seconds": 1.0, "all_seconds": [1.0, 1.0], "peak_bytes": 8}


def test_a_system_that_keeps_files_in_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fadvise")
    with pytest.raises(ValueError, match="cannot drop files from its memory"):
        bench.compare(0.25, 1, tmp_path)
    assert not any(tmp_path.iterdir())
