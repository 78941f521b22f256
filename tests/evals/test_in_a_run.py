"""The evaluations of `config.evals` in a run, beside its held-out loss."""

import json

import pytest

from research.evals.text_perplexity import TextPerplexity
from research.run import evaluated
from research.run.opened import open_run
from research.training.metrics import read_rows
from tests.configs import experiment

TEXT = "def f(x):\n    return x\n" * 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps that scores a text of its own."""
    from research.train import train

    folder = tmp_path_factory.mktemp("evals")
    (folder / "code.txt").write_text(TEXT)
    settings = {"code": {"kind": "perplexity", "text": str(folder / "code.txt"), "window": 16}}
    steps = {"train.steps": 2, "train.eval_every": 1, "train.sample_tokens": 0}
    e = experiment("quickstart", "smoke", **steps, evals=settings)
    assert train(e, folder / "run", live=False).exit_code == 0
    return folder / "run"


def test_their_values_stand_beside_the_held_out_loss_under_their_names(run):
    rows = [row for row in read_rows(run / "metrics.jsonl") if "eval/loss" in row]
    assert [row["step"] for row in rows] == [1, 2]
    names = {"eval/code/perplexity", "eval/code/nll_per_token", "eval/code/bits_per_byte"}
    assert all(names <= row.keys() for row in rows)
    assert "eval/code/perplexity" in (run / "report.html").read_text()


def test_the_items_of_the_last_evaluation_are_kept_with_its_step(run):
    summary = json.loads((run / "evals/code.json").read_text())
    items = [json.loads(line) for line in (run / "evals/code.jsonl").read_text().splitlines()]
    last = read_rows(run / "metrics.jsonl")[-1]
    assert summary["step"] == 2 and len(items) == summary["metrics"]["perplexity"]["n"] == 3
    assert summary["metrics"]["perplexity"]["value"] == last["eval/code/perplexity"]
    assert "95% interval" in (run / "report.html").read_text()


def test_a_run_measures_what_its_checkpoint_does(run):
    evaluation = TextPerplexity(TEXT, window=16)
    values = evaluation.values(evaluation.run(open_run(run)))
    last = read_rows(run / "metrics.jsonl")[-1]
    for name, value in values.items():
        # The run's mesh divides rows between devices, so float32 sums have another order.
        assert last[f"eval/code/{name}"] == pytest.approx(value, rel=1e-5)


def test_the_held_out_loss_by_name_is_that_of_the_log(run):
    """A run's directory may be given as a checkpoint, and has its own evaluations too."""
    opened, folder = evaluated.open_evaluated(None, str(run))
    assert folder == run
    settings = evaluated.choose(["heldout", "code"], opened, ["code.window=8"])
    assert settings["code"]["window"] == 8 and settings["code"]["kind"] == "perplexity"
    results = evaluated.evaluate(evaluated.make_chosen(settings, opened), opened)
    last = read_rows(run / "metrics.jsonl")[-1]
    # The run's mesh divides rows between devices, so float32 sums have another order.
    loss = results["heldout"].estimates()["loss"]
    assert loss.value == pytest.approx(last["eval/loss"], rel=1e-5)
    assert loss.low < loss.value < loss.high and loss.n == len(results["heldout"].items) > 1
