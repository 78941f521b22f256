"""The shipped ablations: what each compares can be run, and says what it expects."""

import ast
import dataclasses

import pytest

from research.experiment.config import from_json
from research.files import read_json
from research.run import loop
from research.run.resolve import from_config
from research.sweep import running
from research.sweep.cells import Resolver
from research.sweep.running import load_sweep
from research.sweep.scaling import points
from research.sweep.workers import Trainer
from tests.configs import ROOT, load_config

ABLATIONS = sorted(path.stem for path in (ROOT / "configs" / "ablations").glob("*.py"))


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_combination_of_the_smoke_form_can_be_run(name, monkeypatch):
    monkeypatch.setattr(Resolver, "_prints", lambda *_: {"data": "", "tokenizer": ""})
    sweep = load_sweep(f"{ROOT}/configs/ablations/{name}.py:smoke")
    config = load_config(f"ablations/{name}", "smoke")
    assert not config.init  # no network
    resolver = Resolver(config, sweep, "code")
    cells = [resolver.cell(point, seed) for seed in sweep.seeds for point in sweep.points]
    assert not [cell.refused for cell in cells if cell.refused]
    # No two levels are the same run.
    assert len({cell.key for cell in cells}) == len(sweep.points) * len(sweep.seeds)


@pytest.mark.parametrize("name", ABLATIONS)
def test_the_whole_form_has_seeds_for_a_verdict_and_says_what_to_expect(name):
    file = ROOT / "configs" / "ablations" / f"{name}.py"
    docstring = ast.get_docstring(ast.parse(file.read_text()))
    for words in ("Expected", "python -m research.sweep", "smoke", f"ablations/{name}.py"):
        assert words in docstring
    sweep, config = load_sweep(str(file)), load_config(f"ablations/{name}")
    # The ladder of the scaling law is no comparison.
    assert len(sweep.seeds) >= 6 or name == "scaling"
    if not config.init:
        for point in sweep.points:
            changed = config.copy_and_resolve_references()
            sweep.change(changed, point)
            from_config(changed)


@pytest.fixture
def in_this_process(monkeypatch):
    """Cells are trained by this process, whose start and compiled programs they share."""

    def train(trainer, cell):
        experiment = from_json(read_json(cell / "config.json"))
        return loop.train(experiment, cell / "run", live=False).exit_code

    monkeypatch.setattr(Trainer, "train", train)


# Two combinations of each smoke form, the baseline first: a run compiles for seconds.
TRAINED = {
    "depth_width": [{"layers x width": "2 x 128"}, {"layers x width": "1 x 184"}],
    "lora_rank": [
        {"rank": "8", "matrices": "all-linear"},
        {"rank": "2", "matrices": "query|value"},
    ],
    "optimizer_rate": [
        {"optimizer": "adamw", "rate": "0.01"},
        {"optimizer": "muon", "rate": "0.03"},
    ],
    "packing": [{"packing": "on"}, {"packing": "off"}],
    "positions": [{"positions": "rope"}, {"positions": "relative"}],
    "quantization": [{"format": "none", "method": "lora"}, {"format": "nf4", "method": "dora"}],
    "scaling": [{"width": "32", "steps": "4"}, {"width": "64", "steps": "8"}],
    "tokenizer": [{"tokenizer": "bpe 512"}, {"tokenizer": "bytes"}],
    "width_rate": [{"model": "muP 16", "rate": "0.01"}, {"model": "muP 64", "rate": "0.03"}],
    "window": [{"window": "all"}, {"window": "4, every other layer"}],
}


@pytest.mark.slow
@pytest.mark.usefixtures("small_library")
@pytest.mark.parametrize("name", TRAINED)
def test_the_smoke_form_ends_in_an_answer(name, tmp_path, monkeypatch, in_this_process):
    spelling = f"{ROOT}/configs/ablations/{name}.py:smoke"
    sweep = load_sweep(spelling)
    design = dataclasses.replace(sweep.design, points=TRAINED[name])
    sweep = dataclasses.replace(sweep, design=design, seeds=(0,))
    monkeypatch.setattr(running, "load_sweep", lambda _: sweep)
    found = running.run_sweep(spelling, tmp_path)
    ledger = running.open_ledger(str(tmp_path))
    records = list(ledger.records().values())
    assert [record["state"] for record in records] == ["done"] * 2, records
    # Each is a run of its own, which has begun to learn, but for adapters on random weights.
    losses = {record["metrics"]["eval/loss"] for record in records}
    assert len(losses) == 2
    learnt = [record["metrics"]["eval/loss"] < record["first"]["loss"] for record in records]
    assert all(learnt) or name == "quantization"
    assert {one.comparison.verdict for one in found} == {"needs 5 more seeds"}
    assert all((tmp_path / file).stat().st_size for file in ("report.html", "results.csv"))
    if name == "scaling":
        # What the law is fitted to; a step has 8 windows of 32 tokens.
        small, large = sorted(points(ledger), key=lambda run: run.tokens)
        assert (small.tokens, large.tokens) == (4 * 256, 8 * 256)
        assert 0 < small.parameters < large.parameters and {small.loss, large.loss} == losses
