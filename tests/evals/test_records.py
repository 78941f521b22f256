"""Records of evaluations: subsets by seed, and the forms in which packages carry them."""

import json
import zipfile

import pytest

from research.downloads import pypi
from research.evals import packaged
from research.evals.packaged import Packaged, csv_rows, json_array, json_lines, text_lines
from research.evals.records import read_records


def test_a_seed_draws_a_subset_whose_ids_are_those_of_the_whole(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps({"n": n}) + "\n" for n in range(50)))
    assert [id for id, _ in read_records(str(file), 3)] == ["0", "1", "2"]
    drawn = read_records(str(file), 5, seed=1)
    assert len(drawn) == 5 and all(str(record["n"]) == id for id, record in drawn)
    assert [int(id) for id, _ in drawn] == sorted(int(id) for id, _ in drawn)
    assert drawn == read_records(str(file), 5, seed=1) != read_records(str(file), 5, seed=2)
    assert len(read_records(str(file), 0, seed=1)) == 50


@pytest.mark.parametrize(
    "parse, content, records",
    [
        (json_lines, b'{"a": 1}\n\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        (json_array, b'["one", {"a": 2}]', [{"text": "one"}, {"a": 2}]),
        (text_lines, b"one\n\n two \n", [{"text": "one"}, {"text": "two"}]),
        (csv_rows, b'\xef\xbb\xbf# v=1,,\n# more\na,b\n1,"x\ny"\n', [{"a": "1", "b": "x\ny"}]),
    ],
)
def test_files_of_packages_become_records(parse, content, records):
    assert parse(content) == records


def test_records_of_several_files_say_which_is_theirs(tmp_path, monkeypatch):
    archive = tmp_path / "p-1-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as whole:
        whole.writestr("p/one.txt", "a\n")
        whole.writestr("p/two.txt", "b\n")
    monkeypatch.setattr(pypi, "fetch", lambda *_, **__: archive)
    row = Packaged(("p==1", "0"), ("p/one.txt", "p/two.txt"), dict, text_lines)
    assert packaged.read_packaged(row) == [
        {"file": "one", "text": "a"},
        {"file": "two", "text": "b"},
    ]
