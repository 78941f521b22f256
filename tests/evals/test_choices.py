"""Multiple choice: how records are spelt, and what is counted."""

import json

import pytest

from research.evals.choices import Choices, ChoicesConfig, Question
from research.evals.evaluation import RunData
from tests.evals.test_laws import opened

DECODER = RunData(kind="decoder")


def made(tmp_path, *records, **config) -> Choices:
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Choices.make(ChoicesConfig(str(file), **config), DECODER)


ASKED = {"question": "1 + 1 =", "choices": ["one", "two"]}


@pytest.mark.parametrize(
    "record",
    [
        {**ASKED, "answer": 1},
        {**ASKED, "label": "1"},
        {**ASKED, "answer": "B"},
        {**ASKED, "answer": "two"},
        {**ASKED, "answer": True},
        {"ctx": "1 + 1 =", "endings": ["one", "two"], "gold": 1},
        {
            "question": "1 + 1 =",
            "choices": {"text": ["one", "two"], "label": ["A", "B"]},
            "answerKey": "B",
        },
    ],
)
def test_the_usual_spellings_are_one(record, tmp_path):
    assert made(tmp_path, record).questions == [Question("0", "1 + 1 =", ("one", "two"), 1)]


def test_prompt_choices_examples_and_slices_are_settings(tmp_path):
    records = [{"id": f"q{n}", "q": f"is {n} odd", "of": "odd", "answer": n % 2} for n in range(4)]
    evaluation = made(
        tmp_path,
        *records,
        prompt="Q: {q}?\nA:",
        choices=("no", "yes"),
        shots=1,
        limit=2,
        slices=("of",),
    )
    assert [q.id for q in evaluation.questions] == ["q1", "q2"]
    assert evaluation.questions[0].slices == (("of", "odd"),)
    text = evaluation.asked.text(None, [("Q: is 0 odd?\nA:", " no")], "Q: is 1 odd?\nA:")
    assert text == "Q: is 0 odd?\nA: no\n\nQ: is 1 odd?\nA:"
    [first, _] = evaluation.items(opened())
    assert first.texts["prompt"] == "Q: is 1 odd?\nA:" and first.texts["answer"] == "yes"


@pytest.mark.parametrize(
    ("record", "config", "line"),
    [
        ({**ASKED, "answer": 2}, {}, "answer=2 is none of the 2 choices"),
        ({**ASKED, "answer": "three"}, {}, "answer='three' is none of the 2 choices"),
        (ASKED, {}, "record 0 of .* has no answer under answer or label"),
        ({"question": "a", "answer": 0}, {}, "no list of texts under choices"),
        ({"choices": ["a", "b"], "answer": 0}, {}, "wanted a text under prompt or question"),
        ({**ASKED, "answer": 0}, {"prompt": "{questoin}"}, "no field 'questoin' .* 'question'"),
        ({**ASKED, "answer": 0}, {"slices": ("subject",)}, "no field 'subject' for slices"),
        ({**ASKED, "answer": 0}, {"shots": 1}, "shots=1 leaves no question of 1"),
        ({**ASKED, "choices": ["one"], "answer": 0}, {}, "has 1 choices; give two or more"),
    ],
)
def test_records_that_do_not_fit_are_refused_by_name(record, config, line, tmp_path):
    with pytest.raises(ValueError, match=line):
        made(tmp_path, record, **config)


def test_a_choice_is_the_likeliest_and_a_length_may_change_it():
    """Against the definition, by the likelihoods of the parts."""
    from research.evals.likelihood import encode_pair, log_likelihoods

    question = Question("q", "ab", ("c", "de", "f"), 1)
    [item] = Choices([question]).items(opened())
    pairs = [encode_pair(opened().tokenizer, "ab", f" {choice}") for choice in question.choices]
    nats = [one.nats for one in log_likelihoods(opened(), pairs)]
    rank = 1 + sum(n > nats[1] for n in nats)
    numbers = {name: total for name, (total, _) in item.totals.items()}
    assert numbers["acc"] == (rank == 1) and numbers["mrr"] == pytest.approx(1 / rank)
    assert numbers["acc_norm"] == (nats[1] / 2 > max(nats[0], nats[2]))
    assert numbers["margin"] == pytest.approx(nats[1] - max(nats[0], nats[2]), abs=1e-4)
    assert numbers["chance"] == pytest.approx(1 / 3)
