"""The formats of local files: each kind of file that people have gives the records that are in it,
and a file that is damaged is named with its line."""

import json

import hypothesis.strategies as st
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings

from research.data.csv_records import Table
from research.data.documents import UnreadableRecord
from research.data.files import FileDocuments
from research.data.json_records import JsonLines
from research.data.layouts import LAYOUTS

BOM = b"\xef\xbb\xbf"


def read(path, wanted="texts", query=""):
    documents = FileDocuments(path, query, path.parent / "cache", wanted)
    return [{name: documents[i][name] for name in documents.fields} for i in range(len(documents))]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"text": "two"}\n'),
        ("a.jsonl", b'{"text": "one"}\r\n\r\n  \t\r\n{"text": "two"}\r\n'),
        ("a.jsonl", BOM + b'{"text": "one"}\n\n{"text": "two"}'),
        ("a.ndjson", b'{"text": "one"}\n{"text": "two"}\n'),
        ("a.json", b'[{"text": "one"},\n {"text": "two"}]'),
        ("a.json", BOM + b'{"text": "one"}\r\n{"text": "two"}'),
        ("A.JSON", b'\n [{"text": "one"}, {"text": "two"}]'),
        ("a.csv", b"text,n\none,1\ntwo,2\n"),
        ("a.csv", BOM + b"n;text\r\n\r\n1;one\r\n2;two\r\n"),
        ("a.csv", b'"text"\n"one"\n"two"'),
        ("a.tsv", b"n\ttext\n1\tone\n2\ttwo\n"),
    ],
)
def test_every_format_of_records_gives_the_same_records(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == [{"text": "one"}, {"text": "two"}]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "A.TXT", "notes.rst", "x.rs"])
def test_texts_of_any_kind_are_read_whole_without_their_mark(tmp_path, name):
    (tmp_path / name).write_bytes(BOM + "# héllo\r\n\r\nthere\r\n".encode())
    assert read(tmp_path / name) == [{"text": "# héllo\r\n\r\nthere\r\n"}]


@settings(deadline=None, max_examples=50)  # files are slow on a busy machine
@given(
    st.lists(
        st.tuples(st.text(st.sampled_from('a",;\té\r\n ')), st.text(st.sampled_from("b\n'|"))),
        max_size=5,
    )
)
def test_a_table_gives_back_whatever_was_written_into_it(tmp_path_factory, rows):
    import csv

    path = tmp_path_factory.mktemp("table") / "a.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("text", "more"), *rows])
    table = Table(path, "a.csv")
    assert [tuple(table.row(i).values()) for i in range(len(table))] == rows


@given(st.lists(st.sampled_from(['{"a": 1}', "", " ", "\t", '  {"a": 2}', "\v"]), max_size=6))
@settings(deadline=None, max_examples=50)
def test_lines_without_anything_are_no_records(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    for end in ("\n", "\r\n"):
        path.write_bytes(end.join(lines).encode())
        assert len(JsonLines(path, "a")) == sum(line not in ("", " ", "\t", "\v") for line in lines)


def test_a_long_cell_and_one_of_another_encoding(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text\n" + b"x" * 300_000 + b"\ncaf\xe9\ngood\n")
    documents = FileDocuments(tmp_path / "a.csv", "", tmp_path / "cache")
    assert len(documents[0]["text"]) == 300_000 and documents[2]["text"] == "good"
    with pytest.raises(UnreadableRecord, match="record 1: .*utf-8"):
        documents[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,n\none\n", r"a\.csv, record 0: line 2 has 1 cells, the header 2"),
        ("a.csv", b'text,n\n"one\n",1\ntwo,2,3\n', r"record 1: line 4 has 3 cells"),
        ("a.csv", b"text,text\none,two\n", r"a\.csv, line 1: two columns have one name"),
        ("a.json", b'[{"text": "one"},\n {"text" "two"}]', r"a\.json .*line 2 column"),
        ("a.json", b'"text"', r"a\.json holds a JSON str, wanted a list"),
        ("a.json", b"[" * 100_000, r"a\.json cannot be read as JSON"),
        ("a.json", b'[3, {"text": "one"}]', r"record 0: a JSON int, wanted an object"),
        ("a.jsonl", b'{"text": "one"}\n' + b"[" * 100_000, r"a\.jsonl, record 1: "),
        ("a.jsonl", b"[" * 100_000 + b"\n{\n", r"a\.jsonl, record 0: .*no record before 2"),
        ("a.jsonl", b'{"text": ' * 900 + b"1" + b"}" * 900, r"record 0: "),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


# Folders.

FOUR = ("instruction", "input", "output", "n")


def write(path, rows):
    """Records in the format of the path's suffix, with the columns that any of them has."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines))
    else:
        text = "\n".join(map(json.dumps, rows))
        path.write_text(f"[{text.replace(chr(10), ',')}]" if path.suffix == ".json" else text)


@pytest.mark.parametrize(
    "formats",
    [
        (a, b)
        for a in (".parquet", ".jsonl", ".csv", ".json")
        for b in (".parquet", ".jsonl", ".csv", ".json")
    ],
)
@pytest.mark.parametrize("query", ["", "instruction=q&input=i&output=r"])
def test_a_file_without_an_optional_column_takes_it_from_no_other_file(tmp_path, formats, query):
    names = ("q", "i", "r") if query else ("instruction", "input", "output")
    full = dict(zip(names, ("ask", "given", "said")))
    for file, row in ((f"a{formats[0]}", full), (f"b{formats[1]}", full)):
        missing = {names[1]} if file.startswith("b") else set()
        write(tmp_path / file, [{k: v for k, v in row.items() if k not in missing}] * 2)
    asked = [
        json.loads(r["conversation"])[0]["content"] for r in read(tmp_path, "conversations", query)
    ]
    assert asked == ["ask\n\ngiven"] * 2 + ["ask"] * 2


def test_a_column_that_no_file_has_is_never_done_without(tmp_path):
    write(tmp_path / "a.parquet", [{"q": "ask", "r": "said"}])
    with pytest.raises(ValueError, match="has the fields q, r"):
        read(tmp_path, "conversations", "instruction=q&input=typo&output=r")


def test_files_of_one_folder_may_be_of_different_layouts_of_conversations(tmp_path):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    write(tmp_path / "a.jsonl", [{"messages": messages}])
    write(tmp_path / "b.parquet", [{"instruction": "a", "output": "b"}])
    write(
        tmp_path / "c.json",
        [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}],
    )
    assert [json.loads(r["conversation"]) for r in read(tmp_path, "conversations")] == [
        messages
    ] * 3


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_shard_without_the_wanted_column_is_refused_and_named(tmp_path, suffix):
    write(tmp_path / f"a{suffix}", [{"text": "one"}])
    write(tmp_path / f"b{suffix}", [{"body": "two"}])
    with pytest.raises(ValueError, match=rf"b\{suffix} has the fields body"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("files", "wanted", "texts", "line"),
    [
        # Beside records a README is none of the data; so are lists and tables of other columns.
        (
            ("a.jsonl", "README.md", "x.csv"),
            "texts",
            ["one"],
            "passed over 2 of 3 files: README.md "
            r"\(a text beside records\), x.csv \(other columns\)",
        ),
        (
            ("a.jsonl", "b.txt", "c.png"),
            "texts",
            ["one", "b.txt"],
            r"passed over 1 of 3 files: c.png \(format .png\)",
        ),
        (("b.md", "c.py", "d.txt"), "texts", ["b.md", "c.py", "d.txt"], ""),
        (("b.md", ".git/c.py", "x.csv", "e.txt"), "texts", ["b.md", "e.txt"], "passed over 1 of 3"),
        (
            ("d.csv", "empty.txt"),
            "texts",
            ["one"],
            r"passed over 1 of 2 files: empty.txt \(empty\)",
        ),
        (("a.jsonl", "z.json"), "texts", ["one"], r"z.json \(.*cannot be read as JSON"),
    ],
)
def test_a_folder_says_what_of_it_is_passed_over(tmp_path, caplog, files, wanted, texts, line):
    folder = tmp_path / "data"
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in ("a.jsonl", "d.csv"):
            write(path, [{"text": "one"}])
        elif name == "x.csv":
            write(path, [{"other": "one"}])
        else:
            path.write_text("" if "empty" in name else name)
    assert [row["text"] for row in read(folder, wanted)] == texts
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == bool(line)
    if line:
        import re

        assert re.search(line, said[0]) and "\n" not in said[0]


def test_layouts_have_columns_that_tables_can_hold(tmp_path):
    chat = json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    (tmp_path / "a.csv").write_text('messages\n"' + chat.replace('"', '""') + '"\n')
    assert json.loads(read(tmp_path / "a.csv", "conversations")[0]["conversation"])[1]["content"]
    (tmp_path / "b.csv").write_text("text,label\nx,1.0\ny,0\nz,0.0\n")
    assert [row["label"] for row in read(tmp_path / "b.csv", "labels")] == ["1", "0", "0"]
    (tmp_path / "c.tsv").write_text("inputs\ttargets\na, b\tc\n")
    assert read(tmp_path / "c.tsv", "pairs") == [{"inputs": "a, b", "targets": "c"}]
    assert set(LAYOUTS) >= {"texts", "pairs", "labels", "conversations"}
