"""What is left out, cut, weighted or repeated is said in one line with its count, and no data
change unseen."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from research.data.alpaca import open_alpaca
from research.data.census import Census, count_repeated, unmarked_bounds
from research.data.chat import encode_chat
from research.data.config import DataConfig
from research.data.content import content_digest
from research.data.corpus import open_corpus
from research.data.documents import Subset, UnreadableRecord, digest, heldout_mask
from research.data.files import FileDocuments
from research.data.json_records import JsonLines, JsonList
from research.data.mixture import parse_mixture
from research.data.records import Records
from research.data.sources import open_source
from research.data.tokenizers import load_tokenizer
from research.data.tokens import TokenStore
from research.objectives.choose import OBJECTIVES
from research.objectives.span_corruption import SpanCorruption
from tests.data.chat_templates import TEMPLATES, save_tokenizer


@pytest.fixture
def open_rows(tmp_path, monkeypatch):
    """Rows of a layout as a corpus, with the tokenizer of the chat tests (ids of bytes)."""
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    save_tokenizer(tmp_path / "tokenizer", TEMPLATES["chatml"]["plain"])

    def open_them(rows, wanted, **settings):
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        config = DataConfig(
            source=str(tmp_path / "rows.jsonl"), tokenizer=str(tmp_path / "tokenizer"), **settings
        )
        return open_corpus(config, wanted=wanted)

    return open_them


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "root"]


def chat(question: str, answer: str, **more):
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, **more},
        ]
    }


# What is left out, cut, or hardly meant.


@pytest.mark.parametrize(
    ("rows", "wanted", "line"),
    [
        (
            [{"inputs": f"a cat {n}", "targets": "chat" * (n % 3)} for n in range(60)],
            "pairs",
            r"\d+ of \d+ pairs have an empty target",
        ),
        (
            [{"text": f"film {n}", "label": ["good", "Good ", "bad"][n % 3]} for n in range(60)],
            "labels",
            "classes 'Good ' and 'good' are 2 and differ in case or spaces alone",
        ),
    ],
    ids=["empty targets", "classes alike"],
)
def test_what_is_hardly_meant_is_said(open_rows, caplog, rows, wanted, line):
    corpus = open_rows(rows, wanted)
    corpus.train_windows(64, 0, 0)
    assert [one for one in said(caplog) if re.search(line, one)]


def test_a_field_that_stands_twice_in_a_record_is_no_choice_of_ours(tmp_path):
    (tmp_path / "twice.jsonl").write_text('{"text": "a"}\n{"text": "b", "text": "c"}\n')
    lines = JsonLines(tmp_path / "twice.jsonl", "twice")
    assert lines.row(0) == {"text": "a"}
    with pytest.raises(UnreadableRecord, match="record 1: .* field 'text' twice"):
        lines.row(1)
    (tmp_path / "list.json").write_text('[{"a": {"b": 1, "b": 2}}]')
    with pytest.raises(ValueError, match="list.json cannot be read as JSON: .* field 'b' twice"):
        JsonList(tmp_path / "list.json", "list")


def test_long_conversations_are_counted(open_rows, caplog):
    # 9 of ChatML's tokens and letters stand before an answer, one behind it.
    rows = [chat(f"{i}", "yes") for i in range(10)]
    rows += [chat("q" * 70 + str(i), "yes") for i in range(12)]
    rows += [chat(f"{i}", "y" * 90) for i in range(18)]
    corpus = open_rows(rows, "conversations")
    corpus.train_windows(65, 0, 0)
    train = [corpus.sources[0][0].train[i] for i in range(len(corpus.sources[0][0].train))]
    long = [[d["path"] for d in train if mark in d["conversation"]] for mark in ("qqq", "yyy")]
    counts = [len(paths) for paths in long]
    wanted = f"left out {counts[0]}, cut {counts[1]} of {len(train)} conversations at 64 tokens"
    wanted += f"; the first: left out {long[0][0]}, cut {long[1][0]}"
    assert said(caplog) == [wanted] and min(counts) > 5
    caplog.clear()
    corpus.heldout_windows(65, 0)
    assert len(said(caplog)) == 1 and said(caplog)[0].startswith("held out: left out ")


@pytest.mark.parametrize(
    ("rows", "wanted", "line"),
    [
        (
            [{"text": f"{i} " + "x" * (i % 4) * 9, "label": i % 2} for i in range(80)],
            "labels",
            "cut {} of {} texts at 16 tokens",
        ),
        (
            [{"inputs": f"{i}", "targets": f"{i} " + "x" * (i % 4) * 9} for i in range(80)],
            "pairs",
            "cut {} of {} pairs at 16 tokens",
        ),
        (
            [{"inputs": f"{i} " + "x" * (i % 4) * 9, "targets": f"{i}"} for i in range(80)],
            "pairs",
            "cut {} of {} pairs at 16 tokens",
        ),
    ],
)
def test_texts_that_are_cut_are_counted(open_rows, caplog, rows, wanted, line):
    corpus = open_rows(rows, wanted)
    windows = corpus.train_windows(16, 0, 0)
    train = [corpus.sources[0][0].train[i] for i in range(len(corpus.sources[0][0].train))]
    cut = sum(any(value.count("x") > 9 for value in document.values()) for document in train)
    assert said(caplog) == [line.format(cut, len(train))] and 0 < cut < len(train)
    assert len(windows.parts[0]) > 0


def test_records_of_several_fields_are_counted_once():
    store = lambda *sizes: TokenStore(
        np.zeros(sum(sizes), np.uint16), np.cumsum([0, *sizes]), np.array(sizes), "s"
    )
    windows = Records({"a": store(1, 9, 9), "b": store(1, 9, 1)}, 8)
    assert windows.census.lines() == ["cut 2 of 3 records at 8 tokens"]
    assert Census("texts", 3, 8).lines() == []


def test_empty_texts_are_no_documents_and_a_text_gets_no_second_end(open_rows, caplog):
    rows = [{"text": text} for i in range(40) for text in (f"a{i}</s>", "", f"<s>b{i}", "</s>")]
    corpus = open_rows(rows, "texts")
    train = corpus.train_windows(16, 1, 0)
    windows = [train.parts[0][i] for i in range(len(train.parts[0]))]
    ids = np.concatenate([w["tokens"][:-1][w["segments"][:-1] > 0] for w in windows])
    bos, eos = corpus.tokenizer.bos_id, corpus.tokenizer.eos_id
    for mark in (bos, eos):
        assert not np.any((ids[1:] == mark) & (ids[:-1] == mark))
    documents = [corpus.sources[0][0].train[i] for i in range(len(corpus.sources[0][0].train))]
    empty = sum(d["text"] in ("", "</s>") for d in documents)
    assert said(caplog) == [f"left out {empty} empty of {len(documents)} texts"]
    assert abs(int(np.sum(ids == bos)) - (len(documents) - empty)) <= 1
    # The tokens that bits per byte are over are those of the windows.
    heldout = [
        corpus.sources[0][0].heldout[i]["text"] for i in range(len(corpus.sources[0][0].heldout))
    ]
    counted = [len(t.replace("<s>", "").replace("</s>", "")) for t in heldout]
    assert corpus.heldout_size()[1] == sum(n + 1 for n in counted if n)


@pytest.mark.parametrize("wanted", ["pairs", "labels"])
def test_no_layout_writes_an_end_twice(open_rows, wanted):
    rows = [
        {"inputs": f"{i}</s>", "targets": "x</s>", "text": f"<s>{i}</s>", "label": i % 2}
        for i in range(40)
    ]
    corpus = open_rows(rows, wanted)
    window = corpus.train_windows(16, 0, 0)[0]
    for name in ("inputs", "targets") if wanted == "pairs" else ("tokens",):
        ids, eos = window[name], corpus.tokenizer.eos_id
        assert np.any(ids == eos) and not np.any((ids[1:] == eos) & (ids[:-1] == eos))
        assert not np.any((ids[1:] == corpus.tokenizer.bos_id) & (ids[:-1] == ids[1:]))


@pytest.mark.parametrize(
    ("bos", "eos", "documents", "wanted"),
    [
        (1, 2, [[1, 5, 2], [5], [], [2], [1], [1, 2], [2, 1]], [[5], [5], [], [], [], [], [2, 1]]),
        (None, 2, [[2, 5, 2, 2]], [[2, 5, 2]]),
        (2, 2, [[2, 5, 2], [2]], [[5], []]),
        (1, None, [[1, 1, 2]], [[1, 2]]),
    ],
)
def test_marks_that_a_text_has_are_not_counted_as_its_own(bos, eos, documents, wanted):
    ids, sizes = np.array(sum(documents, []), np.uint16), list(map(len, documents))
    store = TokenStore(ids, np.cumsum([0, *sizes]), np.array(sizes), "s")
    starts, stops = unmarked_bounds(store, bos, eos)
    assert [ids[a:b].tolist() for a, b in zip(starts, stops)] == wanted


def test_span_corruption_counts_texts_too_short_and_windows_too_full():
    objective = SpanCorruption(0, 1, tuple(range(90, 96)))
    window = lambda *sizes: {"segments": np.repeat(np.arange(1, len(sizes) + 1), sizes)}
    lines = objective.shortfalls([window(3, 2, 59), window(64), window(*[4] * 16)])
    # A text of 4 tokens loses one and has 3 targets, 48 in all where 32 have room.
    assert objective.target_length(64) == 32
    assert lines == [
        "of the first 3 windows 2 of 20 texts are too short to lose a span, the targets of 1 "
        "windows are cut, for they hold many texts"
    ]
    assert objective.shortfalls([window(64)]) == []
    # The count is of what the example does.
    example = objective.example(
        {"segments": window(*[4] * 16)["segments"], "tokens": np.full(64, 50)},
        np.random.default_rng(0),
    )
    assert example["weights"].all() and example["segments"].max() < 16


def test_unreadable_records_are_counted_at_every_start(open_rows, caplog):
    rows = [{"text": f"row {i}"} for i in range(60)]
    rows[10:40:2] = [{"text": None}] * 15
    corpus = open_rows(rows, "texts")
    for _ in range(2):  # tokenised, and from the cache
        caplog.clear()
        corpus.train_windows(16, 1, 0)
        assert any(
            line.startswith("left out 1") and "unreadable records, the first: " in line
            for line in said(caplog)
        )
    assert sum("field 'text'" in line for line in said(caplog)) == 1


# What is in both parts.


@pytest.mark.parametrize(
    ("wanted", "row"),
    [
        ("texts", lambda i: {"text": f"text {i}"}),
        ("labels", lambda i: {"text": f"text {i}", "label": i % 2}),
        ("pairs", lambda i: {"inputs": f"in {i}", "targets": "same"}),
        ("conversations", lambda i: chat(f"{i}", "same")),
    ],
)
def test_held_out_records_that_are_trained_on_too_are_counted(open_rows, caplog, wanted, row):
    for rows, repeated in (
        ([row(i % 10) for i in range(60)], True),
        (map(row, range(60)), False),
    ):
        caplog.clear()
        corpus = open_rows(list(rows), wanted)
        corpus.train_windows(48, 0, 0)
        corpus.heldout_windows(48, 0)
        count = len(corpus.sources[0][0].heldout)
        line = f"{count} of {count} held-out records are in the training data too, word for word"
        assert said(caplog) == [line] * repeated


def test_records_that_differ_in_one_token_are_no_repetition():
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 40, 200)
    ids = rng.integers(0, 50_000, sizes.sum()).astype(np.uint16)
    train = TokenStore(ids, np.cumsum([0, *sizes]), sizes, "t")
    heldout = TokenStore(ids.copy(), np.cumsum([0, *sizes]), sizes, "h")
    filled = int(np.sum(sizes > 0))
    assert count_repeated([heldout], [[train]]) == filled
    for start, size in zip(heldout.offsets, sizes):
        if size:
            heldout.ids[start + rng.integers(size)] ^= 1
    assert count_repeated([heldout], [[train]]) == 0


# Weights of messages.


@pytest.mark.parametrize("kind", ["plain", "marked"])
@pytest.mark.parametrize("template", ["chatml", "llama3", "loops"])
def test_a_message_of_weight_0_is_read_and_not_learnt(tmp_path, template, kind):
    save_tokenizer(tmp_path, TEMPLATES[template][kind])
    tokenizer = load_tokenizer(tmp_path)
    answers = ("first", "second", "third")
    messages = [m for text in answers for m in chat("q", text)["messages"]]
    ids, every = encode_chat(tokenizer, messages)
    for unlearnt in ((0,), (1,), (0, 2)):
        weighted = [dict(m) for m in messages]
        for n in range(3):
            weighted[2 * n + 1]["weight"] = 0 if n in unlearnt else 1
        again, mask = encode_chat(tokenizer, weighted)
        assert again == ids
        learnt = tokenizer.decode([i for i, said in zip(ids, mask) if said])
        assert [text in learnt for text in answers] == [n not in unlearnt for n in range(3)]
        assert all(before or not now for before, now in zip(every, mask))


# Edits.


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "b.csv", "sub/c.md"])
def test_an_edit_that_keeps_size_and_date_changes_the_fingerprint(tmp_path, name, monkeypatch):
    # The files are as old as a cache believes them to be.
    monkeypatch.setattr("research.data.content._SETTLED_SECONDS", 0.0)
    path = tmp_path / "data" / name
    path.parent.mkdir(parents=True)
    text = "\n".join(["text", *(f'{{"text": "the fox {i}"}}' for i in range(40))])
    path.write_text(text if name.endswith("csv") else text.removeprefix("text\n"))
    before = path.stat()
    first = open_source(str(tmp_path / "data"), tmp_path / "cache").fingerprint
    assert open_source(str(tmp_path / "data"), tmp_path / "cache").fingerprint == first
    path.write_text(path.read_text().replace("fox 3", "cat 3"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert open_source(str(tmp_path / "data"), tmp_path / "cache").fingerprint != first


def test_a_digest_of_samples_sees_both_ends_and_the_size(tmp_path, monkeypatch):
    monkeypatch.setattr("research.data.content._WHOLE_BYTES", 1000)
    monkeypatch.setattr("research.data.content._SAMPLE_BYTES", 10)
    path, cache, prints = tmp_path / "a", tmp_path / "cache", set()
    for change in (None, 0, 1999, 995, "longer"):
        data = bytearray(2000)
        if isinstance(change, int):
            data[change] = 1
        path.write_bytes(bytes(data) + b"\0" * (change == "longer"))
        prints.add(content_digest([(str(path), "a")], cache, sampled=True))
    assert len(prints) >= 4


# What commit eef6e6e gave the folder below, with and without a file that it did not read.
EARLIER = "ad68aa5dfb3105b4376859510c7f40a567c048bd7f91e87e27c0fdfd656df7c9"


@pytest.mark.parametrize("beside", ["", "notes.md"])
def test_a_run_from_before_goes_on_with_the_data_that_it_read(tmp_path, caplog, beside):
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i:02}.txt").write_text(f"text {i}\n" * 3 if i % 5 else "x</s>")
    (folder / "30.txt").write_text("\n")
    (folder / "rows.jsonl").write_text('{"text": "one"}\n')
    if beside:
        (folder / beside).write_text("was passed over")
    now = open_source(str(folder), tmp_path / "cache")
    caplog.clear()
    source = open_source(str(folder), tmp_path / "cache", "texts", EARLIER)
    assert source.fingerprint == EARLIER != now.fingerprint
    assert sum("is read by the rules that the run began with" in line for line in said(caplog)) == 1
    assert source.train.rules == 1 and now.train.rules == 2
    # Without an edit none of them is asked for; with one neither fits, and the run says so.
    assert open_source(str(folder), tmp_path / "cache", "texts", now.fingerprint).train.rules == 2
    (folder / "00.txt").write_text("y</s>")
    edited = open_source(str(folder), tmp_path / "cache", "texts", EARLIER)
    assert edited.train.rules == 2 and edited.fingerprint not in (now.fingerprint, EARLIER)


def test_a_corpus_finds_what_its_run_has_recorded(open_rows, tmp_path):
    corpus = open_rows([{"text": f"t{i}"} for i in range(40)], "texts")
    earlier = open_source(corpus.config.source, tmp_path / "cache", "texts")
    documents = FileDocuments(Path(corpus.config.source), "", tmp_path / "cache", rules=1)
    heldout = heldout_mask(documents.identities())
    parts = [Subset(documents, np.flatnonzero(mask)) for mask in (~heldout, heldout)]
    recorded = digest(*(part.fingerprint for part in parts))
    folder = tmp_path / "run" / "tokenizer"
    corpus.tokenizer.save(folder)
    for dataset in (
        {"source": corpus.config.source, "fingerprint": recorded},
        {"sources": [{"source": corpus.config.source, "fingerprint": recorded}]},
    ):
        (tmp_path / "run" / "provenance.json").write_text(json.dumps({"dataset": dataset}))
        again = open_corpus(corpus.config, folder)
        assert again.provenance["fingerprint"] == recorded != earlier.fingerprint


def test_the_fingerprint_of_a_named_source_is_what_runs_have_recorded(tmp_path, monkeypatch):
    path = tmp_path / "alpaca.jsonl"
    path.write_text('{"instruction": "a", "input": "", "output": "b"}\n' * 40)
    monkeypatch.setattr("research.data.alpaca.built", lambda *_: path)
    earlier = FileDocuments(path, "", tmp_path / "cache", "conversations", rules=1)
    assert open_alpaca(tmp_path / "cache")[0].fingerprint == earlier.fingerprint


# Objectives and layouts.

ROWS = {
    "texts": {"text": "x"},
    "pairs": {"inputs": "a", "targets": "b"},
    "labels": {"text": "x", "label": 1},
    "conversations": chat("a", "b"),
}


@pytest.mark.parametrize("given", ROWS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_objective_reads_its_layout_and_says_whose_another_is(tmp_path, objective, given):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[given]) + "\n")
    reads = OBJECTIVES[objective].reads
    if (reads, given) == ("media", "conversations"):  # a column of media may be in any record
        with pytest.raises(ValueError, match="no image, audio or video; .* objective chat"):
            FileDocuments(path, "", tmp_path, reads)[0]
        return
    if reads == given or (reads, given) == ("texts", "labels"):  # a labelled text is a text
        assert FileDocuments(path, "", tmp_path, reads)[0]["path"] == "rows.jsonl:0"
        return
    with pytest.raises(ValueError) as caught:
        FileDocuments(path, "", tmp_path, reads)
    line = str(caught.value)
    assert "\n" not in line and f"read {reads}" in line and objective in line
    assert f"for {given}" in line and "config.objective.name" in line and str(path) in line


def test_every_objective_is_named_by_its_layout():
    from research.data.layouts import LAYOUTS

    named = {name: row.read_by for name, row in LAYOUTS.items()}
    for name, kind in OBJECTIVES.items():
        assert name in named[kind.reads]
    assert sum(map(len, named.values())) == len(OBJECTIVES)


# Paths and saved tokenizers.


def test_commas_and_colons_of_paths_that_exist_are_theirs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.txt", "c:2", "d,e,f.jsonl", "d", "why?.txt"):
        (tmp_path / name).write_text("x")
    for spelling, wanted in (
        ("a,b.txt", [("a,b.txt", 1.0)]),
        ("a,b.txt?text=x", [("a,b.txt?text=x", 1.0)]),
        ("a,b.txt:0.5,stdlib", [("a,b.txt", 0.5), ("stdlib", 1.0)]),
        (
            "stdlib:3, d,e,f.jsonl?text=body:2,c:2",
            [("stdlib", 3.0), ("d,e,f.jsonl?text=body", 2.0), ("c:2", 1.0)],
        ),
        ("d,e.txt", [("d", 1.0), ("e.txt", 1.0)]),
        ("why?.txt,stdlib", [("why?.txt", 1.0), ("stdlib", 1.0)]),
        (f"{tmp_path}/a,b.txt", [(f"{tmp_path}/a,b.txt", 1.0)]),
    ):
        assert parse_mixture(spelling) == wanted
    (tmp_path / "why?.txt").write_text("because\n" * 300)
    assert open_source("why?.txt", tmp_path / "cache").train[0]["text"].startswith("because")


@pytest.mark.parametrize("damage", ["empty", "cut", "no record"])
@pytest.mark.parametrize("begun", [False, True])
def test_a_half_written_tokenizer_is_written_anew_before_the_run_has_begun(
    open_rows, tmp_path, caplog, damage, begun
):
    folder = tmp_path / "run" / "tokenizer"
    corpus = open_rows([{"text": f"t{i}"} for i in range(40)], "texts")
    corpus.tokenizer.save(folder)
    file, content = folder / "tokenizer.json", (folder / "tokenizer.json").read_bytes()
    file.write_bytes(content[: {"empty": 0, "cut": 500, "no record": 300}[damage]])
    if damage == "no record":
        (folder / "fingerprint.json").unlink()
    if begun:
        (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
        with pytest.raises(ValueError, match=r"tokenizer\.json") as caught:
            open_corpus(corpus.config, folder)
        assert "\n" not in str(caught.value)
        return
    again = open_corpus(corpus.config, folder)
    assert again.tokenizer.fingerprint == corpus.tokenizer.fingerprint
    assert any("written anew" in line for line in said(caplog))
    again.tokenizer.save(folder)
    assert load_tokenizer(folder).fingerprint == corpus.tokenizer.fingerprint


def test_a_full_disk_leaves_the_tokenizer_that_was_there(tmp_path, monkeypatch):
    save_tokenizer(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    tokenizer.save(tmp_path / "saved")
    before = {file.name: file.read_bytes() for file in (tmp_path / "saved").iterdir()}
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "disk full")))
    changed = replace(tokenizer, files={name: b"other" for name in tokenizer.files})
    with pytest.raises(OSError, match="disk full"):
        changed.save(tmp_path / "saved")
    assert {file.name: file.read_bytes() for file in (tmp_path / "saved").iterdir()} == before
