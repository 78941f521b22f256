"""Questions on passages as windows: what data sets spell, where the answer is, how long passages
are split."""

import json
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from research.data.files import FileDocuments
from research.data.framing import Frame
from research.data.questions import question_rows, question_windows, read_question
from research.data.stretches import stretches
from research.data.tokenizers import load_tokenizer
from research.data.windows import WindowOptions

BYTES = load_tokenizer("bytes")
COLUMNS = {name: name for name in ("question", "context", "answers")}
CONTEXT = "Zoë wrote it in Köln, and Max read it in Rome."
WANTED = {"question": "Where?", "context": CONTEXT, "answers": "[[16, 20]]"}


def windows(folder, rows, length=40, overlap=8):
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents = FileDocuments(folder / "q.jsonl", "", folder / "cache", "questions")
    return question_windows(documents, WindowOptions(BYTES, folder / "cache", length, overlap))


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["Köln", "Rome"], "answer_start": [16, 41]},
        [{"text": "Köln", "answer_start": 16}, {"text": "Rome", "answer_start": 41}],
    ],
)
def test_both_spellings_of_answers_are_one(answers):
    got = read_question({**WANTED, "answers": answers}, COLUMNS)
    assert got == {**WANTED, "answers": "[[16, 20], [41, 45]]"}


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"text": ["Köln"], "answer_start": [17]}, "is not at 17 .*; it is at 16: .* not bytes"),
        ({"text": ["Oslo"], "answer_start": [3]}, "answer 'Oslo' is not at 3"),
        ({"text": ["a"], "answer_start": []}, "1 answers but 0 places"),
        ([{"text": "a"}], "is no text with the place"),
        ("Köln", "answers are no"),
    ],
)
def test_an_answer_that_is_not_there_is_refused(answers, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_question({**WANTED, "answers": answers}, COLUMNS)
    assert "\n" not in str(caught.value)


def test_a_file_of_squads_is_its_questions(tmp_path):
    asked = {"question": "Where?", "id": "a", "answers": [{"text": "Köln", "answer_start": 16}]}
    hard = {"question": "Why?", "id": "b", "is_impossible": True, "answers": []}
    paragraph = {"context": CONTEXT, "qas": [asked, hard]}
    squad = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [paragraph]}]}
    (tmp_path / "dev.json").write_text(json.dumps(squad))
    documents = FileDocuments(tmp_path / "dev.json", "", tmp_path / "cache", "questions")
    assert {**documents[0]} == {**WANTED, "path": "dev.json:0"}
    assert documents[1]["answers"] == "[]" and len(documents) == 2
    (tmp_path / "dev.json").write_text('{"data": [{"paragraphs": [{"qas": [{}]}]}]}')
    with pytest.raises(ValueError, match="cannot be read as a file of SQuAD's.*'context'"):
        FileDocuments(tmp_path / "dev.json", "", tmp_path / "cache", "questions")


def test_the_ends_are_the_answers_tokens_wherever_it_stands(tmp_path):
    rows = [
        {**WANTED, "answers": {"text": ["Köln"], "answer_start": [16]}},
        {**WANTED, "answers": {"text": ["Rome"], "answer_start": [41]}},
        {**WANTED, "answers": None},
    ]
    made = windows(tmp_path, rows)
    found = []
    for window in (made[n] for n in range(len(made))):
        first, last = window["ends"]
        begin = int(np.flatnonzero(window["token_types"])[0])
        assert (first, last) == (0, 0) or begin <= first <= last
        if last:
            found.append(BYTES.decode(window["tokens"][first : last + 1]))
        assert window["token_types"].sum() + begin == window["segments"].sum()
    # Of 48 bytes 30 fit behind the question, so each passage makes two windows; both hold Köln.
    assert len(made) == 6 and found == ["Köln", "Köln", "Rome"]
    assert made.census.lines() == [
        "3 of 3 questions with their contexts are longer than 40 tokens and make 6 windows, of "
        "which neighbours share 8 tokens"
    ]


def test_rows_of_one_question_are_the_windows_of_training(tmp_path):
    made = windows(tmp_path, [{**WANTED, "answers": None}] * 2)
    rows = question_rows(BYTES, "Where?", CONTEXT, 40, 8)
    for number, (row, begin, places) in enumerate(rows):
        for name, values in row.items():
            np.testing.assert_array_equal(values, made[number][name])
        kept = row["tokens"][begin : begin + len(places)]
        assert BYTES.decode(kept) in CONTEXT
        assert CONTEXT[places[0, 0] : places[-1, 1]].strip() == BYTES.decode(kept).strip()


def test_roberta_has_two_marks_between_texts():
    frame = Frame.of(replace(BYTES, bos_id=1, eos_id=2, separators=2))
    row = frame.row(10, [7, 8], [9])
    assert row["tokens"].tolist() == [1, 7, 8, 2, 2, 9, 2, 0, 0, 0]
    assert row["token_types"].tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 0, 0]
    assert frame.start(2) == 5 and frame.room(10, 2) == 4
    with pytest.raises(ValueError, match="set config.data.sequence_length higher"):
        frame.room(6, 2)


@given(st.integers(0, 60), st.integers(1, 20), st.data())
def test_every_token_is_one_stretchs_own_and_neighbours_share_the_overlap(count, room, data):
    overlap = data.draw(st.integers(0, room - 1))
    made = stretches(count, room, overlap)
    assert [n for one in made for n in range(one.first, one.last)] == list(range(count))
    for one in made:
        assert one.start <= one.first <= one.last <= one.stop <= count
        assert one.stop - one.start == min(room, count)
    for before, here in zip(made, made[1:]):
        assert before.stop - here.start >= overlap and here.start > before.start


def test_an_overlap_without_new_tokens_is_refused():
    with pytest.raises(ValueError, match="objective.overlap=6 leaves no room"):
        stretches(10, 6, 6)
