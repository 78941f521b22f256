"""MC1 and MC2 against lm-evaluation-harness, the layouts of TruthfulQA's file, and the balanced
questions of the snowball sets."""

import csv
import json
import math

import numpy as np
import pytest

from research.evals import snowball_sets
from research.evals.choose import make_evaluations
from research.evals.evaluation import RunData, add_up
from research.evals.likelihood import Likelihood
from research.evals.snowball import Snowball
from research.evals.snowball import _item as snowballed
from research.evals.snowball_sets import Asked, balanced, composite_near, is_prime, reached
from research.evals.truthfulness import Claims, Truthfulness
from research.evals.truthfulness import _item as told

DECODER = RunData(kind="decoder")
# (log-likelihoods, how many are true, MC2): the last by process_results_mc2 of lm_eval 0.4.13,
# tasks/truthfulqa/utils.py, called with labels [1] * true + [0] * false.
HARNESS = (
    ([-1.0, -1.0, -1.0, -1.0, -1.0], 3, 0.6),
    ([-3.25, -1.5, -0.75, -2.0], 2, 0.3011758274),
    ([-12.5, -11.0, -30.0], 1, 0.1824255228),
)


def nats(values) -> list[Likelihood]:
    return [Likelihood(value, False, 1) for value in values]


@pytest.mark.parametrize("values, true, mc2", HARNESS)
def test_mc2_is_that_of_the_harness(values, true, mc2):
    answers = tuple("abcde"[: len(values)])
    claims = Claims("0", "q", answers, answers, true)
    assert told(claims, nats(values), nats(values)).totals["mc2"][0] == pytest.approx(mc2, abs=1e-6)


def test_mc1_is_right_where_the_true_answer_is_the_likeliest_and_length_alone_is_beside_it():
    claims = Claims("0", "q", ("long truth", "lie", "fib"), ("a", "b"), 1)
    right = told(claims, nats([-1.0, -2.0, -3.0]), nats([-1.0, -1.0]))
    wrong = told(claims, nats([-2.5, -2.0, -3.0]), nats([-1.0, -1.0]))
    assert (right.totals["mc1"][0], wrong.totals["mc1"][0]) == (1, 0)
    assert right.totals["shortest"][0] == 0 and right.totals["chance"][0] == pytest.approx(1 / 3)
    values = Truthfulness([]).values(add_up([right.totals, wrong.totals]))
    # The wrong choice is the shorter one, and less sure.
    assert (values["auroc_confidence"], values["auroc_length"]) == (1.0, 0.0)


def test_log_likelihoods_below_the_smallest_float_have_shares_too():
    claims = Claims("0", "q", ("a", "b"), ("a", "b"), 1)
    item = told(claims, nats([-2000.0, -2001.0]), nats([-2000.0, -2001.0]))
    assert item.totals["mc2"][0] == pytest.approx(1 / (1 + math.exp(-1)))


QUESTION = {
    "Question": "Is it?",
    "Best Answer": "No",
    "Correct Answers": "No; It is not",
    "Incorrect Answers": "Yes; It is",
    "Category": "Myths",
}
TARGETS = {"mc1": {"No": 1, "Yes": 0, "It is": 0}, "mc2": {"No": 1, "It is not": 1, "Yes": 0}}
TARGETS["mc2"]["It is"] = 0


def listed(answers: dict[str, int]) -> dict[str, list]:
    return {"choices": list(answers), "labels": list(answers.values())}


@pytest.mark.parametrize("layout", ["csv", "targets", "lists"])
def test_every_published_layout_gives_the_same_questions(tmp_path, layout):
    if layout == "csv":
        file = tmp_path / "TruthfulQA.csv"
        with open(file, "w", newline="") as out:
            writer = csv.DictWriter(out, list(QUESTION))
            writer.writeheader()
            writer.writerow(QUESTION)
    else:
        shape = dict if layout == "targets" else listed
        targets = {f"{name}_targets": shape(answers) for name, answers in TARGETS.items()}
        file = tmp_path / "mc_task.json"
        file.write_text(json.dumps([{"question": "Is it?", **targets}]))
    settings = {"data": str(file), "prompt": "{question}"}
    made = make_evaluations({"truthfulness": settings}, DECODER)["truthfulness"]
    [claims] = made.questions
    assert (claims.single, claims.true) == (("No", "Yes", "It is"), 2)
    assert claims.several == ("No", "It is not", "Yes", "It is") and claims.prompt == "Is it?"
    assert not made.notes()  # a person's file stands for nothing else


def test_a_record_without_answers_says_what_is_wanted(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text('{"question": "Is it?", "answer": "no"}\n')
    with pytest.raises(ValueError, match="record 0 .* wanted TruthfulQA's: question with mc1_"):
        make_evaluations({"truthfulness": {"data": str(file)}}, DECODER)


FLIGHTS = (
    "There is a flight from city A to city B\nThere is a flight from city B to city C\n"
    "There is a flight from city D to city A\n\n"
    "Question: Is there a series of flights that goes from city A to city D?"
)


def test_added_questions_have_the_other_answer():
    primes = balanced("primes", [{"number": 7411}, {"number": 10733}], 0, 0)
    assert [one.answer for one in primes] == [True, False, True, False]
    numbers = [int(one.question.split()[1]) for one in primes]
    assert [is_prime(n) for n in numbers] == [True, False, True, False]
    assert len(str(numbers[1])) == 4 and composite_near(7411) == numbers[1]
    unreached, reachable = balanced("flights", [{"text": FLIGHTS}], 0, 0)
    assert not unreached.answer and reachable.answer
    assert reachable.question.endswith("from city A to city C?")  # two flights away
    assert reached([("A", "B"), ("B", "C"), ("D", "A")], "A") == {"B": 1, "C": 2}


@pytest.mark.parametrize(
    "name, record, line",
    [
        ("primes", {"number": 12}, "asks of 12, which is no prime"),
        ("flights", {"text": "city A"}, "has no flights and question"),
        ("flights", {"text": FLIGHTS.replace("city D?", "city B?")}, "a city that is reached"),
    ],
)
def test_a_set_that_is_not_as_published_is_refused(name, record, line):
    with pytest.raises(ValueError, match=line):
        balanced(name, [record], 0, 0)


@pytest.mark.parametrize(
    "yes, accuracy, balanced_accuracy",
    [((0.9, 0.9, 0.9), 2 / 3, 0.5), ((0.9, 0.9, 0.1), 1.0, 1.0), ((0.1, 0.9, 0.9), 1 / 3, 0.25)],
)
def test_a_constant_answer_has_half_of_the_balanced_accuracy(yes, accuracy, balanced_accuracy):
    asked = [Asked(str(n), "primes", "Is it?", n < 2) for n in range(3)]
    items = [snowballed(one, np.array([p, 1 - p])) for one, p in zip(asked, yes)]
    values = Snowball([]).values(add_up(item.totals for item in items))
    assert values["accuracy"] == pytest.approx(accuracy)
    assert values["balanced_accuracy"] == balanced_accuracy


def test_the_sets_are_drawn_by_a_seed():
    records = [{"number": n} for n in range(1000, 2000) if is_prime(n)]
    one, other = (snowball_sets.balanced("primes", records, 10, seed) for seed in (1, 2))
    assert len(one) == len(other) == 10 and one != other
    assert one == snowball_sets.balanced("primes", records, 10, 1)
