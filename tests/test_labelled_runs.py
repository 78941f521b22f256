"""Encoders with labels of tokens and with scores of answers: a run learns them, says what it finds,
and goes to transformers' form and back."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from research.files import read_json
from research.infer.answers import answer, best_span
from research.infer.word_labels import entities, label_words
from research.interop.convert import convert
from research.interop.load import load
from research.interop.storage.label_names import read_label_names
from research.run.opened import open_run
from research.training.metrics import read_rows
from tests.checkpoints import save_checkpoint
from tests.configs import experiment
from tests.families import FAMILIES

BERT = replace(FAMILIES["bert_base"], vocab_size=320, max_length=64, mlm_head=True, pooler=False)
FAST = {"optimizer.learning_rate": 0.01, "train.steps": 60, "train.eval_every": 0}
FAST |= {"train.log_every": 30, "checkpoint.every": 200}


def run(folder, task, rows, **changes):
    from research.train import train

    save_checkpoint(folder / "bert", BERT)
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arg = f"task={task},labels=3,data={folder / 'data.jsonl'},smoke"
    e = experiment("finetune", arg, init=str(folder / "bert"), **{**FAST, **changes})
    assert train(e, folder / "run", live=False).exit_code == 0
    return open_run(folder / "run")


def last(folder, name):
    return [row[name] for row in read_rows(folder / "run/metrics.jsonl") if name in row][-1]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """A run that has learnt that words of X and of Y are names of two kinds."""
    folder, rng = tmp_path_factory.mktemp("names"), random.Random(0)
    rows = []
    for _ in range(80):
        words = [rng.choice(("aa", "XX", "bbb", "YYY")) for _ in range(6)]
        tags = [{"X": "B-X", "Y": "B-Y"}.get(word[0], "O") for word in words]
        rows.append({"tokens": words, "ner_tags": tags})
    return folder, run(folder, "token_classification", rows)


@pytest.mark.slow
def test_words_labels_are_learnt_and_become_entities(names):
    folder, opened = names
    assert last(folder, "eval/accuracy") > 0.95 and last(folder, "eval/entities/f1") > 0.9
    assert read_json(folder / "run/provenance.json")["dataset"]["labels"] == ["B-X", "B-Y", "O"]
    text = "aa XX bbb (YYY)"
    [words] = label_words(opened.model, opened.params, opened.tokenizer, [text], 64, 8)
    assert [text[w.start : w.stop] for w in words] == ["aa", "XX", "bbb", "(", "YYY", ")"]
    found = entities(text, words, read_label_names(folder / "run", 3))
    assert ("X", 3, 5, "XX") in [(one.label, one.start, one.stop, one.text) for one in found]


@pytest.mark.slow
def test_a_long_text_has_the_labels_of_its_windows(names):
    _, opened = names
    text = "aa XX bbb " * 40
    [words] = label_words(opened.model, opened.params, opened.tokenizer, [text], 40, 12)
    assert len(words) == 120 and all(word.label is not None for word in words)
    inside = [text[w.start : w.stop] for w in words if w.label != 2]
    assert inside.count("XX") > 30


@pytest.mark.slow
@pytest.mark.parametrize("fixture", ["names", "answers"])
def test_a_run_goes_to_transformers_classes_and_back(fixture, request, tmp_path):
    folder, opened = request.getfixturevalue(fixture)
    convert(folder / "run", tmp_path / "hf", "hf")
    config = read_json(tmp_path / "hf/config.json")
    ids = np.arange(40)[None] % 97
    assert config["architectures"] == [
        "BertForTokenClassification" if fixture == "names" else "BertForQuestionAnswering"
    ]
    assert ("id2label" in config) == (fixture == "names")
    again = load(tmp_path / "hf")
    assert again.config.labels_over == opened.model.config.labels_over
    batch = {"inputs": ids, "segments": ids * 0 + 1, "positions": np.arange(40)[None]}
    hidden_BTD, _ = opened.model.hidden(opened.params, batch)
    wanted = opened.model.class_logits(opened.params, hidden_BTD)
    # One is compiled, the other not: sums in another order.
    np.testing.assert_allclose(again.scores(ids), wanted, atol=1e-5)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """A run that has learnt to find the digits of a passage, and that some have none."""
    folder, rng = tmp_path_factory.mktemp("answers"), random.Random(0)
    rows = []
    for _ in range(160):
        words = ["ab"] * rng.randint(2, 5)
        context = " ".join(words)
        found = {"text": [], "answer_start": []}
        if rng.random() < 0.7:
            digits = str(rng.randint(10, 99))
            words.insert(rng.randrange(len(words)), digits)
            context = " ".join(words)
            found = {"text": [digits], "answer_start": [context.index(digits)]}
        rows.append({"question": "n?", "context": context, "answers": found})
    more = {"train.steps": 100, "data.batch_size": 16}
    return folder, run(folder, "question_answering", rows, **more)


@pytest.mark.slow
def test_answers_are_learnt_and_found_with_their_places(answers):
    folder, opened = answers
    assert last(folder, "eval/answers/exact_match") > 0.8
    asked = [("n?", "ab ab 42 ab"), ("n?", "ab ab ab"), ("n?", "ab " * 60 + "17 ab")]
    given = opened.model, opened.params, opened.tokenizer, asked
    one, none, far = answer(*given, 64, 8)
    assert (one.text, one.start, one.stop) == ("42", 6, 8) and one.score > one.none
    assert (none.text, none.start, none.stop) == ("", 0, 0) and none.score < none.none
    # Behind the first window, found by its place in the whole passage.
    assert far.text == "17" and far.start == 180
    assert answer(*given[:3], asked[1:2], 64, 8, always=True)[0].text


def test_the_best_span_ends_where_it_begins_or_later():
    scores = np.array([[0.0, 9.0], [5.0, 0.0], [4.0, 1.0], [0.0, 3.0]])
    assert best_span(scores) == (9.0, 0, 0)
    assert best_span(scores[1:]) == (8.0, 0, 2)
    assert best_span(scores[:0]) is None
    far = np.zeros((50, 2))
    far[0, 0], far[40, 1] = 9, 9
    assert best_span(far)[2] - best_span(far)[1] < 30
