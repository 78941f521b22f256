"""Conditions choose runs of several sweeps, and say what they do not understand."""

import json

import pytest

from research.files import write_json
from research.sweep.query import answer, resolve, rows, select
from tests.configs import experiment
from tests.sweep.plans import plan, records, written


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two sweeps: of ranks 2 and 16 with QLoRA on Alpaca, and of one factor on other data."""
    root = tmp_path_factory.mktemp("sweeps")
    config = experiment("finetune", "model=smollm2_135m,method=qlora").to_json()
    made = plan({"size": ["2", "16"]}, 2)
    ledger = written(root / "rank", made, records(made, lambda levels, seed: float(levels["size"])))
    for entry in made.entries:
        lora = config["lora"] | {"rank": int(entry["levels"]["size"])}
        write_json(ledger.cell(entry["cell"]) / "config.json", config | {"lora": lora})
    made = plan({"a": ["x", "y"]}, 1)
    bad = lambda levels, seed: None if levels["a"] == "y" else 1.0
    ledger = written(root / "other", made, records(made, bad))
    config = json.loads(json.dumps(experiment("quickstart").to_json()))
    for entry in made.entries:
        write_json(ledger.cell(entry["cell"]) / "config.json", config)
    return root


@pytest.mark.parametrize(
    ("condition", "count"),
    [
        ("method=='qlora' and rank>=8", 2),
        ("lora.rank == 2 or state == 'diverged'", 3),
        ("not method == 'qlora'", 2),
        ("size in (16, 17)", 2),
        ("1 < eval/loss < 10", 2),
        ("eval/loss > 100", 0),
        ("a == 'x'", 1),
        ("", 6),
    ],
)
def test_a_condition_chooses_runs(folder, condition, count):
    assert len(select(rows(folder), condition)) == count


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("rnk > 2", "no run has 'rnk'"),
        ("name == 'x'", "could be .*optimizer.name"),
        ("rank >", "is no condition"),
        ("__import__('os')", "no name and no value"),
        ("rank.__class__", "no run has"),
        ("[x for x in y]", "no name and no value"),
        ("rank + 1 > 2", "no name and no value"),
    ],
)
def test_what_a_condition_may_not_be(folder, condition, words):
    with pytest.raises(ValueError, match=words):
        select(rows(folder), condition)


def test_runs_are_grouped_by_a_field(folder):
    lines = answer(folder, "state == 'done'", "data", "eval/loss").splitlines()
    assert [line.split()[:4] for line in lines[1:]] == [
        ["alpaca", "4", "4", "9"],
        ["stdlib", "1", "1", "1"],
        ["5", "of", "6", "runs"],
    ]
    with pytest.raises(ValueError, match="holds no sweep"):
        answer(folder / "nothing", "", "", "eval/loss")


def test_a_name_is_that_of_the_fewest_sections():
    known = {"model.layers", "model.image.layers", "data.source"}
    assert resolve("layers", known) == "model.layers"
    assert resolve("image.layers", known) == "model.image.layers"
