"""A cell ends once, and the index is what the records say, whatever happened to it."""

import contextlib
import errno
import json
from unittest import mock

import pytest

from research.sweep.ledger import Ledger
from research.sweep.plan import write_plan
from tests.sweep.plans import plan, records, written


def ledger(folder) -> Ledger:
    made = plan({"a": ["x", "y"]}, 2)
    return written(folder, made, records(made, lambda levels, seed: 1.0))


def index(one: Ledger) -> list[dict]:
    return [json.loads(line) for line in one.index.read_text().splitlines()]


def test_a_cell_ends_once(tmp_path):
    one = ledger(tmp_path)
    before = one.index.read_bytes(), one.record("y-0")
    assert not one.finish("y-0", {**one.record("y-0"), "attempts": 7})
    assert (one.index.read_bytes(), one.record("y-0")) == before
    assert {(line["cell"], line["state"], line["attempts"]) for line in index(one)} == {
        (f"{level}-{seed}", "done", 1) for level in "xy" for seed in range(2)
    }


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text, ""),
        (lambda text: text[:-20], "torn"),
        (lambda text: text + b'{"cell": "x', "torn"),
        (lambda text: text + text.splitlines(keepends=True)[0], "does not agree"),
        (lambda text: b"\xff\n" + text, "does not agree"),
        (lambda text: b"", ""),
    ],
    ids=["whole", "cut", "half a line more", "a line twice", "no text", "empty"],
)
def test_a_damaged_index_is_made_again(tmp_path, damage, words):
    one = ledger(tmp_path)
    whole = sorted(one.index.read_text().splitlines())
    one.index.write_bytes(damage(one.index.read_bytes()))
    assert words in one.heal() and (words or damage(b"x") == b"" or not one.heal())
    assert sorted(one.index.read_text().splitlines()) == whole
    assert not one.heal()


@pytest.mark.parametrize("damage", ["", '{"cell": "y-0", "sta', "[]", "{}", "\0\0"])
def test_a_damaged_record_says_how_it_is_made_again(tmp_path, damage):
    one = ledger(tmp_path)
    (one.cell("y-0") / "cell.json").write_text(damage)
    for read in (one.records, one.heal, lambda: one.record("y-0")):
        with pytest.raises(ValueError, match="y-0/cell.json is no.*; delete it, and `run` makes"):
            read()
    (one.cell("y-0") / "cell.json").unlink()
    assert "does not agree" in one.heal() and len(index(one)) == 3
    assert one.finish("y-0", {**one.record("x-0"), "cell": "y-0"}) and len(index(one)) == 4


@pytest.mark.parametrize("code", [errno.ENOTDIR, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, monkeypatch, code):
    (tmp_path / "file").touch()
    one = Ledger(tmp_path / "file")

    def refused(*_):
        raise OSError(code, "in words")

    if code != errno.ENOTDIR:
        monkeypatch.setattr("os.mkdir", refused)
    error, words = (
        (OSError, "in words") if code == errno.ENOSPC else (ValueError, "--workdir=.*file")
    )
    with pytest.raises(error, match=words):
        write_plan(one, plan({"a": ["x"]}, 1), {})


def test_a_disk_that_fills_up_loses_no_record(tmp_path, monkeypatch):
    one = ledger(tmp_path)
    record = one.record("x-0") | {"cell": "z"}
    one.cell("z").mkdir()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="space"):
        patch.setattr("research.sweep.ledger.write_json", full)
        one.finish("z", record)
    assert not one.ended("z") and list(one.cell("z").iterdir()) == []
    with monkeypatch.context() as patch, pytest.raises(OSError, match="space"):
        patch.setattr("research.sweep.ledger.open", full, raising=False)  # of the index
        one.finish("z", record)
    assert one.record("z") == record  # which was written before
    one.heal()
    assert len(index(one)) == 5


def test_where_there_are_no_links_a_cell_ends_once_too(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    one = ledger(tmp_path)
    assert not one.finish("y-0", {"state": "failed"})
    assert one.record("y-0")["state"] == "done"


@pytest.mark.parametrize("link", [errno.EPERM, errno.ENOSPC])
def test_without_room_and_without_links_no_half_record_is_left(tmp_path, monkeypatch, link):
    one = ledger(tmp_path)
    one.cell("z").mkdir()
    full = OSError(errno.ENOSPC, "No space left on device")

    def no_link(*_):
        raise OSError(link, "no link")

    @contextlib.contextmanager
    def half(file, mode, **_):
        with open(file, mode) as new:
            new.write(b'{"cell"')
            # Python's own file says so when it is flushed.
            yield mock.Mock(write=mock.Mock(), flush=mock.Mock(side_effect=full))

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr("os.link", no_link)
        patch.setattr("research.sweep.ledger.open", half, raising=False)
        one.finish("z", {"cell": "z", "state": "done"})
    assert not one.ended("z") and list(one.cell("z").iterdir()) == []
    assert one.finish("z", {"cell": "z", "state": "done"})


def test_a_cell_that_is_set_back_is_run_again(tmp_path):
    one = ledger(tmp_path)
    (one.cell("x-1") / "claims").mkdir()
    one.reopen("x-1")
    assert not one.ended("x-1") and len(index(one)) == 3
    assert {file.name for file in one.cell("x-1").iterdir()} == {
        "cell.1.json", "claims.1", "config.json",
    }  # fmt: skip
