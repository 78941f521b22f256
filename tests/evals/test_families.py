"""What the evaluations of code, classes, retrieval and needles count, and how their data are
spelt."""

import json
from dataclasses import replace

import numpy as np
import pytest

from research.evals import classified, retrieval
from research.evals.choose import make_evaluations
from research.evals.code import Code, CodeConfig, Problem, pass_at, program
from research.evals.evaluation import Evaluation, RunData
from research.evals.needle import Needle
from research.evals.records import read_records
from tests.evals.test_laws import TOKENIZER, opened


def made(tmp_path, kind: str, records: list[dict], model="decoder", **settings) -> Evaluation:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = {kind: {"data": str(file), **settings}}
    return make_evaluations(settings, RunData(kind=model))[kind]


# The estimator against drawing k of n without replacement by hand; arXiv:2107.03374, equation 1.
@pytest.mark.parametrize(
    ("k", "samples", "right", "chance"),
    [(1, 10, 3, 0.3), (5, 10, 3, 0.9166667), (10, 10, 1, 1.0), (3, 3, 0, 0.0), (2, 3, 1, 2 / 3)],
)
def test_the_chance_that_one_of_k_samples_passes(k, samples, right, chance):
    assert pass_at(k, samples, right) == pytest.approx(chance)


BEGUN = 'import math\n\ndef root(x):\n    """Its root."""\n'


@pytest.mark.parametrize(
    "written",
    [
        "    return math.sqrt(x)\n",
        "Sure:\n```python\ndef root(x):\n    return math.sqrt(x)\n```\nIt is right.",
        "```\ndef root(x):\n    return math.sqrt(x)",
    ],
)
def test_a_program_is_what_goes_on_or_the_block_of_an_answer(written):
    scope: dict = {}
    exec(program(BEGUN, written), scope)
    assert scope["root"](9) == 3


def test_programs_pass_their_tests_or_say_why_not():
    problem = Problem("p", BEGUN, "assert root(9) == 3")
    code = Code([problem], samples=3, k=(1, 3), seconds=2)
    texts = ["    return math.sqrt(x)", "    return x", "    return ("]
    programs = [program(BEGUN, text) for text in texts]
    item = code._item(problem, texts, programs, code.run_all(programs))
    assert item.totals["pass@1"] == (pytest.approx(1 / 3), 1) and item.totals["pass@3"] == (1, 1)
    assert item.totals["parsed"] == (2, 3) and "AssertionError" in item.texts["reason"]


def test_human_eval_is_spelt_as_it_ships(tmp_path):
    record = {"task_id": "HumanEval/0", "prompt": BEGUN, "entry_point": "root"}
    code = made(tmp_path, "code", [{**record, "test": "def check(f):\n    assert f(4) == 2"}])
    assert code.problems == [
        Problem("HumanEval/0", BEGUN, "def check(f):\n    assert f(4) == 2\ncheck(root)")
    ]
    [outcome] = code.run_all([program(BEGUN, "    return math.sqrt(x)")])
    assert outcome.passed


@pytest.mark.slow
def test_the_solutions_of_human_eval_pass_and_nothing_does_not():
    try:
        records = [record for _, record in read_records("humaneval", 12)]
    except ValueError as error:
        pytest.skip(str(error))
    code = Code.make(CodeConfig("humaneval", limit=12), RunData(kind="decoder"))
    solutions = [program(one["prompt"], one["canonical_solution"]) for one in records]
    assert all(outcome.passed for outcome in code.run_all(solutions))
    empty = [program(one["prompt"], "    pass\n") for one in records]
    assert not any(outcome.passed for outcome in code.run_all(empty))


def test_classes_are_counted(tmp_path, monkeypatch):
    records = [{"text": f"t{n}", "label": name} for n, name in enumerate(["a", "a", "b", "c"])]
    evaluation = made(tmp_path, "classification", records, "encoder")
    chosen_NC = np.eye(3)[[0, 1, 1, 0]]  # a, b, b, a
    monkeypatch.setattr(classified, "classify", lambda *_: chosen_NC)
    tiny = replace(opened("classification"), labels=("a", "b", "c"))
    values = evaluation.values(evaluation.run(tiny))
    # F1: a 2/4, b 2/3, c 0.
    wanted = {"accuracy": 0.5, "macro_f1": (1 / 2 + 2 / 3) / 3, "majority": 0.5}
    assert values == pytest.approx(wanted)
    unknown = made(tmp_path, "classification", [{"text": "t", "label": "d"}], "encoder")
    with pytest.raises(ValueError, match="label 'd' is no class"):
        list(unknown.items(tiny))


def test_passages_are_ranked_by_their_cosine(tmp_path, monkeypatch):
    records = [
        {"query": "q0", "positive": "p0", "negative": ["p2"]},
        {"question": "q1", "positives": ["p1", "p0"]},
    ]
    evaluation = made(tmp_path, "retrieval", records, "encoder", k=(1, 2))
    assert evaluation.passages == ["p0", "p2", "p1"]
    vectors = {"p0": [1, 0], "p2": [0, 9], "p1": [1, 1], "q0": [1, 3], "q1": [5, 4]}
    embed = lambda model, params, tokenizer, texts, _: np.array([vectors[t] for t in texts], float)
    monkeypatch.setattr(retrieval, "embed", embed)
    first, second = evaluation.items(opened("retrieval"))
    # q0: p2, p1, p0; q1: p1, p0, p2.
    numbers = [{name: total for name, (total, _) in i.totals.items()} for i in (first, second)]
    assert numbers[0] == pytest.approx({"recall@1": 0, "recall@2": 0, "mrr": 1 / 3, "ndcg@10": 0.5})
    assert numbers[1] == pytest.approx({"recall@1": 0.5, "recall@2": 1, "mrr": 1, "ndcg@10": 1})
    assert first.texts["nearest"] == "p2"


def test_a_needle_stands_at_its_depth_in_a_text_of_its_length():
    needle = Needle((300,), (0.0, 1.0))
    for depth in (0.0, 0.5, 1.0):
        text, number = needle._text(TOKENIZER, 300, depth, 0)
        body, question = text.split("\n\n")
        # The number and what a template adds need the rest.
        assert 150 < len(TOKENIZER.encode(text)) <= 284 and number in body
        assert question.startswith("What is the secret number of") and number not in question
        place = body.index("The secret number") / max(len(body.replace(number, "")) - 60, 1)
        assert abs(place - depth) < 0.35
    assert needle._text(TOKENIZER, 300, 0.0, 0) != needle._text(TOKENIZER, 300, 0.0, 1)
    with pytest.raises(ValueError, match="no room for a needle"):
        needle._text(TOKENIZER, 64, 0.0, 0)
    with pytest.raises(ValueError, match="go beyond the model's 256 positions"):
        list(Needle((300,), (0.0,)).items(opened("needle")))


@pytest.mark.parametrize(
    ("kind", "record", "settings", "line"),
    [
        ("generation", {"prompt": "a"}, {}, "has no reference under answer or answers"),
        ("generation", {"answer": "a"}, {}, "wanted a text under prompt or question"),
        ("generation", {"prompt": "a", "answer": "b"}, {"metrics": ("bleurt",)}, "'bleurt'"),
        ("code", {"prompt": "a"}, {}, "wanted a text under tests or test"),
        ("code", {"prompt": "a", "tests": ""}, {"samples": 2}, "all the same; set a temperature"),
        ("code", {"prompt": "a", "tests": ""}, {"k": (2,)}, "must be of 1 to samples=1"),
        ("documents", {"text": ""}, {}, "is an empty text; leave it out"),
        ("judge", {"prompt": "a"}, {}, "give the address of a judge"),
        ("classification", {"text": "a"}, {}, "has no label under label"),
        ("retrieval", {"query": "a", "positive": "b"}, {}, "embeddings come from an encoder"),
    ],
)
def test_data_and_settings_that_do_not_fit_are_refused(kind, record, settings, line, tmp_path):
    with pytest.raises(ValueError, match=line):
        made(tmp_path, kind, [record], **settings)
