"""Jobs over documents: what is read, what is left out, what a stopped command goes on with."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from research.apply import answer, ask
from research.apply import writer as writers
from research.apply.complete import GAP, Complete
from research.apply.documents import Document, LeftOut, read_documents
from research.apply.jobs import JOBS, run_job
from research.apply.output import Output
from research.apply.summarize import Summarize
from research.apply.translate import Translate
from research.apply.write import Write
from research.apply.writer import Writer
from research.data.brief import read_brief
from research.data.infill import sentinels_of
from research.data.pieces import pieces
from research.retrieval.knowledge import Hit
from research.retrieval.passages import Passage
from research.tables.engine import Found
from tests.apply.echo import BYTES, FLAGS, Echo, echo
from tests.checkpoints import save_checkpoint
from tests.families import FAMILIES

DECODER = replace(FAMILIES["llama2_7b"], vocab_size=320, max_length=512)


def texts(*given) -> list[Document]:
    return [Document(str(n), text) for n, text in enumerate(given)]


def test_documents_of_a_folder_and_what_is_none(tmp_path):
    (tmp_path / "in").mkdir()
    for name, content in {
        "a.txt": b"\xef\xbb\xbfone",
        "b.bin": b"\0\1",
        "c.txt": b"caf\xe9",
        "d.md": b" \n",
        "e.jsonl": b'{"text": "two"}\n\n[1]\n{"text": "thr\n',
        "f.csv": b"topic,max_words\ncats,5\ndogs\n",
        ".hidden": b"no",
    }.items():
        (tmp_path / "in" / name).write_bytes(content)
    found = read_documents(str(tmp_path / "in"), io.BytesIO())
    kept = {one.source: one.text for one in found if isinstance(one, Document)}
    assert kept == {"a.txt": "one", "e.jsonl:1": "two", "f.csv:1": "cats"}
    left = {one.source: one.reason for one in found if isinstance(one, LeftOut)}
    assert left["b.bin"] == "is binary and no text" and left["d.md"] == "is empty"
    assert left["c.txt"] == "is no UTF-8: byte 3 is 0xe9"
    assert left["e.jsonl:3"] == "is a JSON list, wanted an object or a text"
    assert "is no JSON record" in left["e.jsonl:4"] and "1 cells, the header 2" in left["f.csv:2"]
    with pytest.raises(ValueError, match="does not exist"):
        read_documents(str(tmp_path / "none"), io.BytesIO())


@pytest.mark.parametrize(("content", "count"), [(b"one\ntwo", 1), (b'{"text": "a"}\n"b"\n', 2)])
def test_standard_input_is_a_text_or_records(content, count):
    found = read_documents("-", io.BytesIO(content))
    assert [type(one) for one in found] == [Document] * count


@pytest.mark.parametrize("room", [7, 12, 30])
def test_pieces_are_the_text_and_fit(room):
    text = "A first one. And a second!\n\nA new paragraph with a wooooooooooooord.\nEnd"
    made = pieces(text, room, len)
    assert "".join(made) == text and max(map(len, made)) <= room
    # No two neighbours fit together that stand in one paragraph at the top.
    assert pieces(text, 80, len) == [text]


def test_a_long_text_is_summarized_in_parts_and_then_as_a_whole():
    seen = []

    def answer(prompt):
        seen.append(prompt)
        return f" s{len(seen)} "

    long = "A sentence of words. " * 60
    writer = echo(answer)
    job = Summarize.make({**FLAGS, "style": "headline"}, writer)
    [short, result] = job.run(texts("Short.", long), writer)
    assert short["windows"] == 1 and result["windows"] > 2
    assert len(seen) == result["windows"] + 2
    assert all(part in seen[-1] for part in ("s1", "s2")) and "Short." in seen[-2]
    assert all(len(prompt) <= 560 for prompt in seen) and result["output"] == f"s{len(seen)}"


def test_a_model_that_shortens_nothing_comes_to_an_end():
    writer = echo(lambda prompt: prompt)
    [result] = Summarize.make(FLAGS, writer).run(texts("word " * 400), writer)
    assert result["output"]


def test_a_window_that_holds_no_two_summaries_is_refused():
    with pytest.raises(ValueError, match="lower it or raise --window"):
        Summarize.make(FLAGS, echo(str, context=120))
    with pytest.raises(ValueError, match="lower --max_tokens or raise --window"):
        Summarize.make(FLAGS, echo(str, context=50))


def test_translations_keep_lines_and_the_spaces_around_them():
    writer = echo(lambda prompt: prompt.removeprefix("translate English to German: ").upper())
    writer = replace(writer, model=SimpleNamespace(config=SimpleNamespace(kind="encoder_decoder")))
    job = Translate.make({**FLAGS, "from_language": "English", "to_language": "German"}, writer)
    text = "one\n\n  two three\n"
    assert job.run(texts(text), writer)[0]["output"] == text.upper()
    with pytest.raises(ValueError, match="give --to_language"):
        Translate.make(FLAGS, echo(str))


def test_a_gap_is_filled_by_models_that_have_tokens_for_it():
    names = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
    ids = {name: 300 + n for n, name in enumerate(names)}

    def encode(batch):
        return [[ids[t]] if t in ids else list(t.encode()) for t in batch]

    def decode(tokens):
        by_id = {n: name for name, n in ids.items()}
        return "".join(by_id.get(n) or chr(n) for n in tokens)

    tokenizer = replace(BYTES, encode_texts=encode, decode_ids=decode, vocab_size=400)
    assert sentinels_of(tokenizer) == (300, 301, 302) and sentinels_of(BYTES) == ()
    writer = replace(echo(str, context=70, bos=False), tokenizer=tokenizer)
    job = Complete.make(FLAGS, writer)
    document = Document("a", "", {"prefix": "def f(x):\n", "suffix": "\n    return y"})
    assert job.input(document) == f"def f(x):\n{GAP}\n    return y"
    whole = "<fim_prefix>def f(x):\n<fim_suffix>\n    return y<fim_middle>"
    assert job.run([document], writer) == [{"output": whole}]
    [result] = job.run([document], replace(writer, context=60))
    assert result == {"output": whole.replace("eturn y", ""), "cut": 7}
    with pytest.raises(ValueError, match="has no tokens to fill one in"):
        Complete().input(document)
    # Without a gap the end of the code is what is read.
    [result] = Complete().run(texts("x" * 100 + "y = "), echo(str, context=60, bos=False))
    assert result["output"].endswith("y = ") and result["cut"] == 85


def test_briefs_are_requests_and_rules():
    fields = {"min_words": "2", "max_words": 4.0, "keywords": "tea, milk", "avoid": ["hot"]}
    brief = read_brief("breakfast", {**fields, "format": "bullets", "tone": ""})
    assert "at least 2 and at most 4 words" in brief.instruction()
    assert all(brief.met("- Tea and milk").values())
    met = brief.met("Teapot, hot")
    assert {name for name, value in met.items() if value} == {"min_words", "max_words"}
    for wrong, message in (
        ({"max_words": -1}, "max_words=-1, wanted a positive number"),
        ({"format": "song"}, "format='song'; there are paragraph"),
        ({"min_words": 9, "max_words": 3}, "wants 9 words at least and 3 at most"),
    ):
        with pytest.raises(ValueError, match=message):
            read_brief("x", wrong)


def test_of_several_texts_the_one_that_meets_most_is_kept():
    drafts = iter(["no", "no tea", "tea tea tea"])
    writer = echo(lambda prompt: next(drafts))
    job = Write(tries=3)
    document = Document("a", "x", {"keywords": ["tea"], "max_words": 2})
    [row] = job.run([document], writer)
    assert row == {"output": "no tea", "tries": 2} | {"constraints": row["constraints"]}
    numbers = job.report([row, row])
    assert numbers == {"duplicates": 1.0, "constraints_met": 1.0, "distinct_2": 0.5}
    with pytest.raises(ValueError, match="raise it"):
        Write.make({**FLAGS, "tries": 2}, writer)


def test_what_has_a_line_is_not_done_again_and_what_was_cut_is(tmp_path, capsys):
    writer, job = echo(str.upper, bos=False), Complete()
    given = [*texts("a = ", "b = "), LeftOut("c", "is empty"), Document("d", "")]
    output = Output(tmp_path / "out.jsonl")
    report = run_job(job, writer, given, output, 1)
    wrong = [{"source": "c", "reason": "is empty"}]
    wrong += [{"source": "d", "reason": "has no text, and no prefix"}]
    assert report == {"written": 2, "present": 0, "left_out": wrong}
    assert "left out c: is empty" in capsys.readouterr().err
    content = (tmp_path / "out.jsonl").read_bytes()
    (tmp_path / "out.jsonl").write_bytes(content[:-5])
    report = run_job(
        job, writer, [*given, *texts("a = ", "z")[1:]], Output(tmp_path / "out.jsonl"), 8
    )
    assert (report["written"], report["present"]) == (2, 1)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["input"], row["output"]) for row in rows] == [
        (text, text.upper()) for text in ("a = ", "b = ", "z")
    ]
    (tmp_path / "other.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="line 1 is no line of a job's output"):
        Output(tmp_path / "other.jsonl")


def test_a_document_that_cannot_be_done_costs_no_other(tmp_path):
    class Picky(Echo):
        def write(self, prompts, seed=0):
            if any("bad" in self.tokenizer.decode(p) for p in prompts):
                raise ValueError("prompt 1 cannot be read")
            return super().write(prompts)

    writer = Picky(*(getattr(echo(str, bos=False), name) for name in Echo.__dataclass_fields__))
    output = Output(tmp_path / "out.txt")
    report = run_job(Complete(), writer, texts("one", "bad", "two"), output, 8)
    assert report["written"] == 2 and report["left_out"][0]["source"] == "1"
    assert (tmp_path / "out.txt").read_text() == "one\n\ntwo\n\n"


@pytest.mark.parametrize("name", JOBS)
def test_every_job_writes_through_the_one_function(name, tmp_path, monkeypatch):
    asked = []

    def generate(model, params, tokenizer, prompts, config):
        asked.append(config)
        return [SimpleNamespace(text="Text.") for _ in prompts]

    monkeypatch.setattr(writers, "generate", generate)
    near = [Hit(Passage("a.txt", 0, 4, "Text"), 0.9)]
    known = SimpleNamespace(find=lambda questions, k: [near for _ in questions])
    monkeypatch.setattr(answer, "open_knowledge", lambda *_: known)
    found = SimpleNamespace(schema="table a: b", told=[], ask=lambda query: Found((), ((query,),)))
    monkeypatch.setattr(ask, "Tables", lambda _: found)
    writer = Writer(**{f: getattr(echo(None), f) for f in Writer.__dataclass_fields__})
    job = JOBS[name].make(
        {**FLAGS, "to_language": "German", "knowledge": "x", "table": ["x"]}, writer
    )
    [row] = job.run(texts("A document."), writer)
    assert row["output"].strip() == "Text." and len(asked) >= 1


def apply(*words: str, stdin: str = "") -> subprocess.CompletedProcess:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "research.apply", *words]
    return subprocess.run(
        command, cwd=root, env=os.environ, capture_output=True, text=True, input=stdin
    )


@pytest.mark.slow
def test_the_command_goes_on_where_it_stopped(tmp_path):
    save_checkpoint(tmp_path / "model", DECODER)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.py").write_text("def f():\n")
    (tmp_path / "in/b.bin").write_bytes(b"\0")
    words = [f"--checkpoint={tmp_path / 'model'}", f"--output={tmp_path / 'out.jsonl'}", "--json"]
    words += ["--max_tokens=4", f"--input={tmp_path / 'in'}"]
    for written in (1, 0):
        done = apply("complete", *words)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert (report["written"], report["present"]) == (written, 1 - written)
        assert [one["source"] for one in report["left_out"]] == ["b.bin"]
    [row] = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert row["input"] == "def f():\n" and set(row) == {"source", "input", "output"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sumarize"], "no job 'sumarize'; the nearest is 'summarize'"),
        ([], f"name a job: python -m research.apply {'|'.join(JOBS)} --input"),
        (["write", "--style=bullets"], "--style is for summarize"),
        (["write", "--checkpoint=x"], "give --output=FILE.jsonl"),
    ],
)
def test_wrong_words_get_one_line(words, message):
    done = apply(
        *words, *([] if "--checkpoint=x" in words else ["--checkpoint=x", "--output=y.jsonl"])
    )
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert message in done.stderr
