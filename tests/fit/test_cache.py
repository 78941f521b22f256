"""A fit is kept under what makes it, and under nothing that does not."""

import os

import pytest

from research.fit import cache
from research.fit.report import Fit
from tests.fit.fits import fit_json

QUESTION = ({"model": {"layers": 2}, "data": {"source": "stdlib"}}, "v5p:4x4x4", "train")
FIT = Fit.from_json(fit_json())


@pytest.fixture(autouse=True)
def new_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path))
    for name in cache.SETTINGS:
        monkeypatch.delenv(name, raising=False)


def test_what_was_kept_is_recalled_under_both_keys():
    cache.keep("question", "program", FIT)
    assert cache.recall("question") == cache.recall("program") == FIT
    assert cache.recall("another") is None
    assert sorted(os.listdir(cache.folder())) == [
        "program.json",
        "question.json",
    ]  # and nothing half written


def test_a_question_is_all_that_was_asked():
    experiment, target, step = QUESTION
    others = [
        ({**experiment, "mesh": "fsdp:2"}, target, step),
        (experiment, "v5p:8x8x8", step),
        (experiment, target, "decode"),
    ]
    assert len({cache.question(*asked) for asked in (QUESTION, *others)}) == 4
    assert cache.question(
        {"data": {"source": "stdlib"}, "model": {"layers": 2}}, target, step
    ) == cache.question(*QUESTION)


@pytest.mark.parametrize(
    "key",
    [lambda: cache.question(*QUESTION), lambda: cache.program("module {}", "v5p:4x4x4", "train")],
)
@pytest.mark.parametrize("change", ["version", "source", "flags"])
def test_another_version_source_or_compiler_flag_is_another_key(key, change, monkeypatch):
    before = key()
    if change == "version":
        monkeypatch.setattr(cache, "_version", lambda package: "99" if package == "libtpu" else "1")
    elif change == "source":
        monkeypatch.setattr(cache, "_source", lambda places: "another")
    else:
        monkeypatch.setenv("XLA_FLAGS", "--xla_tpu_some_flag=true")
    assert key() != before


def test_how_many_fake_devices_the_asker_has_does_not_matter(monkeypatch):
    before = cache.question(*QUESTION)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    assert cache.question(*QUESTION) == before and cache.settings() == {}


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"fit": 5}',
        '{"fit": {"target": "cpu"}}',
        '{"program": "gone"}',
    ],
)
def test_damaged_entries_are_none(damage):
    cache.keep("question", "program", FIT)
    for name in ("question", "program"):
        (cache.folder() / f"{name}.json").write_text(damage)
    assert cache.recall("question") is None and cache.recall("program") is None
    cache.keep("question", "program", FIT)
    assert cache.recall("question") == FIT


def test_a_cache_that_cannot_be_written_loses_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "file"))
    cache.keep("question", "program", FIT)
    assert cache.recall("question") is None
