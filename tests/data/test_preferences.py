"""Pairs of answers: the spellings that data sets have, what is refused, how they are packed."""

import json
import re

import numpy as np
import pytest

from research.data.conversations import read_spelt
from research.data.files import FileDocuments
from research.data.judgement_windows import judgement_windows
from research.data.layouts import LAYOUTS, choose_columns, read_record
from research.data.preference_windows import most_pairs, preference_windows
from research.data.tokenizers import load_tokenizer
from research.data.tokens import BadRecords
from research.data.windows import WindowOptions
from research.objectives.preference import Preference
from tests.data.chat_templates import TEMPLATES, save_tokenizer

QUESTION = {"role": "user", "content": "Two and two?"}
FOUR, FIVE = ({"role": "assistant", "content": text} for text in ("four", "five"))
DIALOGUE = "\n\nHuman: Two and two?\n\nAssistant: "
# One pair in every spelling.
SPELLINGS = {
    "texts": {"prompt": "Two and two?", "chosen": "four", "rejected": "five"},
    "messages": {"prompt": [QUESTION], "chosen": [FOUR], "rejected": [FIVE]},
    "one message": {"prompt": [QUESTION], "chosen": FOUR, "rejected": FIVE},
    "prompt in both": {"chosen": [QUESTION, FOUR], "rejected": [QUESTION, FIVE]},
    "Anthropic's": {"chosen": DIALOGUE + "four", "rejected": DIALOGUE + "five"},
    "a prompt up to the answer": {
        "prompt": DIALOGUE.strip(" "),
        "chosen": "four",
        "rejected": "five",
    },
    "LLaMA-Factory's": {
        "conversations": [{"from": "human", "value": "Two and two?"}],
        "chosen": {"from": "gpt", "value": "four"},
        "rejected": {"from": "gpt", "value": "five"},
    },
    "a table's": {
        "prompt": json.dumps([QUESTION]),
        "chosen": json.dumps([FOUR]),
        "rejected": json.dumps([FIVE]),
    },
}
PAIR, LAYOUT = SPELLINGS["texts"], "preferences"
REFUSED = {
    "equal": ({**PAIR, "rejected": "four"}, "are the same"),
    "empty prompt": ({**PAIR, "prompt": " "}, "field 'prompt' is empty, wanted a text"),
    "empty answer": ({**PAIR, "chosen": ""}, "field 'chosen' is empty"),
    "no prompt": ({"chosen": "four", "rejected": "five"}, "an empty prompt"),
    "other prompts": (
        {"chosen": [QUESTION, FOUR], "rejected": [{**QUESTION, "content": "?"}, FIVE]},
        "different prompts",
    ),
    "a question last": ({**PAIR, "rejected": [FIVE, QUESTION]}, "rejected ends with the user"),
    "no margin": ({**PAIR, "margin": "far"}, "field 'margin' is 'far', wanted"),
    "a negative margin": ({**PAIR, "margin": -1}, "a number of at least 0"),
    "a margin without end": ({**PAIR, "margin": 1e300}, "at least 0 and at most 1e"),
    "a number": ({**PAIR, "chosen": 4}, "field 'chosen' is int, wanted a text or messages"),
    "null": ({**PAIR, "rejected": None}, "field 'rejected' is missing or null"),
    "no messages": ({**PAIR, "prompt": []}, "chosen has an empty prompt"),
    "texts in a list": ({**PAIR, "chosen": ["four"]}, "chosen: message 1 is str"),
    "an object": ({**PAIR, "chosen": {"text": "four"}}, "message 1 has the role None"),
    "half a surrogate pair": ({**PAIR, "chosen": "\ud800"}, "surrogates not allowed"),
}


def read(row: dict) -> dict[str, str]:
    columns = choose_columns("", list(row), "x.jsonl", "preferences")
    return read_record(row, columns, "preferences", "x.jsonl", 7)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_the_same_pair(spelling):
    sides = read(SPELLINGS[spelling])
    assert sides.pop("margin") == "0"
    assert {side: read_spelt(text) for side, text in sides.items()} == {
        "chosen": ([QUESTION, FOUR], []),
        "rejected": ([QUESTION, FIVE], []),
    }


def test_answers_before_the_last_are_read_and_not_learnt():
    before = [QUESTION, FIVE, {"role": "user", "content": "Sure?"}]
    [messages, _] = read_spelt(read({"prompt": before, "chosen": FOUR, "rejected": FIVE})["chosen"])
    assert [message.get("weight") for message in messages] == [None, 0, None, None]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_pair_is_named_with_its_record(name):
    row, words = REFUSED[name]
    with pytest.raises(ValueError, match=words) as refused:
        read(row)
    assert "x.jsonl" in str(refused.value) and "7" in str(refused.value)


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    """A function (rows, length) -> windows of chatml."""
    folder = tmp_path_factory.mktemp("pairs")
    save_tokenizer(folder, TEMPLATES["chatml"]["plain"])
    tokenizer = load_tokenizer(folder)

    def make(rows, length, layout="preferences", **more):
        file = folder / f"{len(list(folder.iterdir()))}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        documents = FileDocuments(file, "", folder / "cache", layout)
        made = {"preferences": preference_windows, "judgements": judgement_windows}[layout]
        options = WindowOptions(tokenizer, folder / "cache", length, **more)
        return tokenizer, made(documents, options)

    return make


def rows(count: int) -> list[dict]:
    return [{**PAIR, "chosen": "x" * i, "rejected": "y" * (i + 1)} for i in range(1, count + 1)]


def test_a_window_has_whole_pairs_with_the_chosen_answer_first(windows):
    tokenizer, packed = windows(rows(6), 400)
    seen = set()
    for window in packed:
        numbers = range(1, window["segments"].max() + 1)
        assert len(numbers) % 2 == 0 and len(numbers) <= 2 * most_pairs(400)
        texts = {n: tokenizer.decode(window["tokens"][window["segments"] == n]) for n in numbers}
        for n in numbers[::2]:
            chosen, rejected = texts[n].split("\n")[-2], texts[n + 1].split("\n")[-2]
            seen.add((chosen.count("x"), rejected.count("y")))
            inside = window["segments"] == n
            assert list(window["positions"][inside]) == list(range(inside.sum()))
            answer = tokenizer.decode(window["tokens"][inside & (window["assistant"] > 0)])
            assert answer.startswith("x" * chosen.count("x")) and "Two" not in answer
    assert seen == {(i, i + 1) for i in range(1, 7)} and len(packed) < 6
    assert packed.census.lines() == []


def test_short_pairs_leave_room_and_long_ones_are_cut_at_halves_or_left_out(windows):
    tokenizer, packed = windows(rows(30), 4096)
    assert sum(w["segments"].max() for w in packed) == 60
    long = {**PAIR, "chosen": "z" * 500}
    silent = {**PAIR, "prompt": "q" * 500}
    _, packed = windows([PAIR, long, silent], 256)
    [line] = packed.census.lines()
    assert line.startswith("left out 1, cut 1 of 3 pairs at 255 tokens; the first: left out ")
    # Records count from 0, as in the lines on those that cannot be read.
    assert re.search(r"left out \S+\.jsonl:2, cut \S+\.jsonl:1$", line)
    # Cut to the same tokens, the two answers of a pair say nothing about each other.
    ends = {**PAIR, "chosen": "z" * 500 + "a", "rejected": "z" * 500 + "b"}
    with pytest.raises(ValueError, match="none has two different answers in 128 tokens"):
        windows([ends], 256)


def test_a_bad_record_ends_the_run_with_its_number(windows):
    with pytest.raises(BadRecords, match="are the same"):
        windows([PAIR, {**PAIR, "rejected": "four"}], 256)


def test_a_bad_record_is_warned_of_once_for_all_fields_of_the_pairs(windows, caplog):
    bad = {1: {**PAIR, "rejected": "four"}, 4: {**PAIR, "prompt": ""}, 5: {**PAIR, "margin": -1}}
    pairs = [bad.get(i, {**PAIR, "chosen": f"four {i}"}) for i in range(7)]
    _, packed = windows(pairs, 256, max_bad_records=3)
    warned = [record.getMessage() for record in caplog.records]
    assert [re.match(r"left out \S+\.jsonl, record (\d): ", line)[1] for line in warned] == [*"145"]
    # Every store still counts them.
    assert all(len(store.bad_records) == 3 for store in packed.stores) and len(packed.stores) == 2
    caplog.clear()
    _, judged = windows(
        [*JUDGED, {**JUDGED[0], "label": "good"}], 512, "judgements", max_bad_records=1
    )
    [line] = [record.getMessage() for record in caplog.records]
    assert "record 6: " in line and "wanted true for an answer" in line


def test_other_data_are_named():
    with pytest.raises(ValueError, match="these are conversations.* can only read preferences"):
        choose_columns("", ["messages"], "x.jsonl", "preferences")
    assert LAYOUTS["preferences"].read_by == ("preference", "reward")
    assert np.all([most_pairs(n) >= 1 for n in (1, 31, 32, 1024)])


JUDGED = [
    {"prompt": f"What is {i}?", "completion": "a" * (i + 1), "label": i % 2 == 0} for i in range(6)
]


def test_an_answer_stands_beside_one_to_another_prompt(windows):
    tokenizer, packed = windows(JUDGED, 512, "judgements")
    seen = {}
    for window in packed:
        for n in range(1, window["segments"].max() + 1, 2):
            for segment in (n, n + 1):
                inside = window["segments"] == segment
                text = tokenizer.decode(window["tokens"][inside])
                answer = tokenizer.decode(window["tokens"][inside & (window["assistant"] > 0)])
                number = int(text.split("What is ")[1][0])
                seen.setdefault(number, []).append(answer.count("a"))
                assert set(window["liked"][inside]) == {1 if number % 2 == 0 else -1}
    assert sorted(seen) == list(range(6))
    assert all(own == i + 1 and other != own for i, (own, other) in seen.items())
    assert sorted(other for _, other in seen.values()) == list(range(1, 7))


def test_labels_have_their_spellings_and_one_answer_alone_is_refused(windows):
    for liked, spellings in {"1": (True, 1, 1.0, "true"), "0": (False, 0, "False")}.items():
        for label in spellings:
            row = {**JUDGED[0], "label": label}
            columns = choose_columns("", list(row), "x.jsonl", "judgements")
            assert read_record(row, columns, "judgements", "x", 0)["label"] == liked
    with pytest.raises(ValueError, match="wanted true for an answer"):
        read_record({**JUDGED[0], "label": "good"}, columns, "judgements", "x", 0)
    with pytest.raises(ValueError, match="compared with one to another prompt"):
        windows(JUDGED[:1], 512, "judgements")


def test_a_prompt_keeps_its_end_and_the_answers_come_into_the_window(windows):
    long = {**PAIR, "prompt": "q" * 500 + "?"}
    _, packed = windows([PAIR, long], 256)
    assert packed.census.left_out == 1
    tokenizer, packed = windows([PAIR, long], 256, prompt_tokens=40)
    assert packed.census.lines() == [
        "left out the beginning of 1 of 2 prompts, by config.data.prompt_tokens"
    ]
    # Both sides of the pair lose the same tokens.
    texts = [
        tokenizer.decode(window["tokens"][window["segments"] == n])
        for window in packed
        for n in range(1, window["segments"].max() + 1)
    ]
    chosen, rejected = sorted(text for text in texts if "q" in text)
    assert chosen.replace("five", "four") == rejected.replace("five", "four")
    assert chosen.count("q") < 40 and chosen.startswith("q")
    judged = [{"prompt": f"{'q' * 500}{i}", "completion": "a", "label": True} for i in range(2)]
    with pytest.raises(ValueError, match="0 fit into 128 tokens"):
        windows(judged, 256, "judgements")
    _, packed = windows(judged, 256, "judgements", prompt_tokens=40)
    assert packed.census.shortened == 2
    assert all(window["positions"].max() < 50 for window in packed)


def test_the_other_answer_has_another_prompt(windows):
    same = [{**JUDGED[0], "completion": "b" * i} for i in (1, 2, 3)]
    tokenizer, packed = windows([*same, *JUDGED[1:3]], 512, "judgements")
    for window in packed:
        for n in range(1, window["segments"].max() + 1, 2):
            own, other = (
                tokenizer.decode(
                    window["tokens"][(window["segments"] == k) & (window["assistant"] > 0)]
                )
                for k in (n, n + 1)
            )
            assert not (own.startswith("b") and other.startswith("b"))
    with pytest.raises(ValueError, match="all 3 answers are to one prompt"):
        windows(same, 512, "judgements")


def test_a_tokenizer_without_a_template_has_plain_answers(tmp_path):
    save_tokenizer(tmp_path / "plain", None)
    tokenizer = load_tokenizer(tmp_path / "plain")
    file = tmp_path / "x.jsonl"
    rows = [{"prompt": "2+2=", "chosen": "4", "rejected": " 5"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = WindowOptions(tokenizer, tmp_path / "cache", 64)
    [window] = preference_windows(FileDocuments(file, "", tmp_path, "preferences"), options)
    first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    for segment, answer in ((1, "4"), (2, " 5")):
        inside = window["segments"] == segment
        ids = window["tokens"][inside].tolist()
        assert ids == [first, *tokenizer.encode("2+2=" + answer), tokenizer.eos_id]
        said = window["tokens"][inside & (window["assistant"] > 0)].tolist()
        assert said == [*tokenizer.encode(answer), tokenizer.eos_id]
    # More than a prompt and an answer cannot be told apart in a text.
    rows[0]["prompt"] = [QUESTION, FOUR, QUESTION]
    file.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(BadRecords, match="record 0|x.jsonl.*no chat template"):
        preference_windows(FileDocuments(file, "", tmp_path, "preferences"), options)


def test_the_margin_of_a_record_stands_at_the_tokens_of_its_pair(windows):
    tokenizer, packed = windows([{**one, "margin": i / 4} for i, one in enumerate(rows(6))], 400)
    for window in packed:
        for n in range(1, window["segments"].max() + 1):
            inside = window["segments"] == n
            answer = tokenizer.decode(window["tokens"][inside & (window["assistant"] > 0)])
            number = answer.count("x") - 1 if n % 2 else answer.count("y") - 2
            assert set(window["margins"][inside]) == {number / 4}
    [said] = Preference().shortfalls(packed)
    assert "margins, which objective reward reads" in said
    assert "margins" not in windows(rows(6), 400)[1][0]


def test_a_margin_that_the_first_record_lacks_is_read_all_the_same(windows):
    first, *others = rows(6)
    _, packed = windows([first, *({**one, "margin": 3} for one in others)], 400)
    margins = np.concatenate([window["margins"] for window in packed])
    assert set(margins[np.concatenate([w["segments"] for w in packed]) > 0]) == {0, 3}


def test_a_margin_that_a_query_names_is_wanted_of_every_record():
    columns = choose_columns("chosen=chosen&rejected=rejected&margin=far", list(PAIR), "x", LAYOUT)
    with pytest.raises(ValueError, match="x.jsonl, record 7: field 'far' is None"):
        read_record({**SPELLINGS["prompt in both"], "margin": 1}, columns, LAYOUT, "x.jsonl", 7)


@pytest.mark.parametrize("layout", ["preferences", "judgements"])
def test_a_refusal_names_the_first_record_that_has_no_room(windows, layout):
    told = rows(3) if layout == LAYOUT else JUDGED
    with pytest.raises(ValueError, match=r"the first that has not: \d+.jsonl:0"):
        windows([{**one, "prompt": "x" * 400} for one in told], 256, layout)
