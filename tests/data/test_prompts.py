"""Prompts: their tokens are kept, and each keeps the record that its reward is computed from."""

import json
from dataclasses import replace

import numpy as np
import pytest

from research.data.addition import open_tagged_addition
from research.data.documents import UnreadableRecord
from research.data.files import FileDocuments
from research.data.layouts import read_record
from research.data.prompts import PromptEncoder, prompt_windows, record_of
from research.data.tokenizers import load_tokenizer
from research.data.windows import WindowOptions
from tests.data.chat_templates import TEMPLATES

TOKENIZER = replace(load_tokenizer("bytes"), chat_template=TEMPLATES["chatml"]["plain"])
ASK = [{"role": "user", "content": "2+2?"}]
ROWS = [
    {"prompt": "1+1=", "answer": "2"},
    {"prompt": "", "answer": "0"},
    {"prompt": 7, "answer": "7"},
    {"prompt": ASK, "answer": "4"},
    {"prompt": "[3]", "answer": "3"},  # a text, though it reads as JSON
]


def windows(folder, tokenizer=TOKENIZER, rows=ROWS):
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents = FileDocuments(folder / "tasks.jsonl", "", folder / "cache", "prompts")
    options = WindowOptions(tokenizer, folder / "cache", 64, max_bad_records=1)
    return prompt_windows(documents, options)


def test_each_prompt_keeps_its_record_beside_bad_and_empty_ones(tmp_path):
    prompts = windows(tmp_path)
    shown = [TOKENIZER.decode(prompt["prompt"].tolist()) for prompt in prompts]
    assert shown[0].endswith("1+1=") and shown[2].endswith("[3]")
    assert shown[1].startswith("<|im_start|>user\n2+2?") and shown[1].endswith("assistant\n")
    assert [record_of(prompt)["answer"] for prompt in prompts] == ["2", "4", "3"]
    assert record_of(prompts[2])["path"].endswith("4") and prompts.census.empty == 1
    assert prompts.census.lines() == ["left out 1 empty of 5 prompts, the first: tasks.jsonl:1"]
    assert prompts.longest()[1] == record_of(prompts[1])["path"]


def test_a_second_start_reads_the_tokens_of_the_first(tmp_path, monkeypatch):
    first = windows(tmp_path)
    monkeypatch.setattr(PromptEncoder, "encode_batch", None)  # a call would fail
    again = windows(tmp_path)
    for one, other in zip(first, again, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_messages_that_the_template_rejects_are_named_with_their_record(tmp_path):
    picky = replace(TOKENIZER, chat_template="{{ raise_exception('no ' + messages[0].content) }}")
    with pytest.raises(ValueError, match="tasks.jsonl.*4.*no 2"):
        windows(tmp_path, picky, [*ROWS[:3], {"prompt": "x", "answer": ""}, ROWS[3]])


def test_a_tagged_sum_is_asked_on_one_side_alone(tmp_path):
    sides = [list(part) for part in open_tagged_addition(tmp_path)[:2]]
    asked = [{frozenset(one["path"].split("+")) for one in side} for side in sides]
    assert [len(side) for side in sides] == [320, 80] and not asked[0] & asked[1]
    assert json.loads(sides[0][0]["record"])["answer"] == "<a>3</a>"


@pytest.mark.parametrize(
    ("prompt", "line"),
    [
        (None, "its prompt is missing or null"),
        ([], "its prompt is a list, wanted messages"),
        (["2+2?"], "its prompt is a list, wanted messages"),
        ([{"role": "user", "content": " "}], "message 0, by user, is empty"),
        ([{"role": "user", "content": None}], "message 0 has NoneType for its content"),
        ([{"role": "usr", "content": "2+2?"}], "message 0 has the role 'usr'"),
        ([*ASK, {"role": "assistant", "content": "4"}], "its last message is the assistant's"),
        ("\ud800", "surrogates not allowed"),
    ],
)
def test_what_is_no_prompt_is_named_with_its_record(prompt, line):
    with pytest.raises(UnreadableRecord, match=f"x.jsonl, record 7: .*{line}"):
        read_record({"prompt": prompt}, {"prompt": "prompt"}, "prompts", "x.jsonl", 7)


def test_an_answer_that_the_first_record_lacks_is_read_all_the_same(tmp_path):
    prompts = windows(tmp_path, rows=[{"prompt": "1+1="}, {"prompt": "1+2=", "answer": "3"}])
    assert [record_of(prompt).get("answer") for prompt in prompts] == [None, "3"]
